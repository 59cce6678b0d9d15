//! Runs on: connection core.
//!
//! gRPC over an h2 stream: heads, length-prefixed messages, statuses. It knows no service. It brings calls to the door
//! (`api::call`) and takes their answers away.
//!
//! - `messages`: a stream's body, split into messages
//! - `reply`: the way back to a call's client
//! - `gzip`: compressed messages, both ways
//!
//! What a head gets wrong is answered as grpc-go's own HTTP/2 server answers it, in its order. Such calls are not
//! counted.
//! **Source** grpc-go v1.82.1 `internal/transport/http2_server.go`, `server.go`.
//!
//! Bounds: a message is refused by its announced length before its body is read, and by its true length while it is
//! decompressed. A stream holds at most one message, and beyond it the flow-control window.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header, request::Parts};

use self::{
    messages::{Encoding, Messages},
    reply::{ContentType, GrpcReply, UnderWay},
};
use crate::{
    api::call::{Head, Reply},
    error::{Code, Error, Status},
    method::{self, Method},
};

mod gzip;
pub mod messages;
pub mod reply;

/// What every gRPC content type begins with.
const CONTENT_TYPE: &[u8] = b"application/grpc";

/// A call that can be brought to the door.
pub struct Opening<'a> {
    /// The method that is called.
    pub method: Method,
    /// What its client says besides its messages.
    pub head: Head<'a>,
    /// Its messages.
    pub messages: Messages,
    /// The way back.
    pub reply: GrpcReply,
}

/// Reads the head of a stream. `None` if it makes no call: then the client has been told why. Messages have at most
/// `len_max` bytes.
pub fn open<'a>(
    parts: &'a Parts,
    body: RecvStream,
    reply: SendResponse<Bytes>,
    under_way: UnderWay,
    len_max: usize,
) -> Option<Opening<'a>> {
    let fields = Fields::of(parts);
    let content_type = fields.content_type.map(ContentType::of);
    let is_grpc = content_type.is_some();
    let mut reply = GrpcReply::new(reply, under_way, content_type.unwrap_or(ContentType::Plain));
    if let Err((code, status)) = fields.check(parts, is_grpc) {
        reply.refuse_with(code, &status);
        return None;
    }
    let path = parts.uri.path();
    let Some(method) = Method::at(path) else {
        reply.refuse(&Error::UnknownMethod(method::unknown(path)).into());
        return None;
    };
    let encoding = match fields.encoding {
        None | Some(b"" | b"identity") => Encoding::Identity,
        Some(b"gzip") => {
            reply.compress();
            Encoding::Gzip
        }
        Some(other) => {
            reply.refuse(&Error::Compressed(text(other)).into());
            return None;
        }
    };
    let timeout = fields.timeout.and_then(Result::ok);
    let head = Head { client_api_version: fields.client_api_version, wants_leader: fields.wants_leader, timeout };
    Some(Opening { method, head, messages: Messages::new(body, len_max, encoding), reply })
}

/// The fields of a head that mean something here, each as grpc-go chooses it where a client repeats it.
#[derive(Default)]
struct Fields<'a> {
    /// What follows the separator in the last content type that is gRPC's.
    content_type: Option<&'a [u8]>,
    /// The last content type that is not gRPC's.
    other_content_type: Option<&'a [u8]>,
    encoding: Option<&'a [u8]>,
    timeout: Option<Result<Duration, String>>,
    client_api_version: Option<&'a [u8]>,
    wants_leader: bool,
}

impl<'a> Fields<'a> {
    fn of(parts: &'a Parts) -> Self {
        let mut fields = Self::default();
        // One pass costs less than a search for each of the names.
        for (name, value) in &parts.headers {
            let value = value.as_bytes();
            match name.as_str() {
                "content-type" => match subtype(value) {
                    Some(subtype) => fields.content_type = Some(subtype),
                    None => fields.other_content_type = Some(value),
                },
                "grpc-encoding" => fields.encoding = Some(value),
                "grpc-timeout" => fields.timeout = Some(timeout(value)),
                "client-api-version" => _ = fields.client_api_version.get_or_insert(value),
                "hasleader" => fields.wants_leader |= value == b"true",
                _ => {}
            }
        }
        fields
    }

    /// **Errors** the HTTP status and the gRPC status of a head that makes no call.
    fn check(&self, parts: &Parts, is_grpc: bool) -> Result<(), (StatusCode, Status)> {
        let refusal = |http, code, message: String| Err((http, Status { code, message: message.into() }));
        if !is_grpc {
            let given = text(self.other_content_type.unwrap_or(b""));
            let message = format!("invalid gRPC request content-type {given:?}");
            return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, message);
        }
        if let Some(Err(error)) = &self.timeout {
            return refusal(StatusCode::BAD_REQUEST, Code::Internal, format!("malformed grpc-timeout: {error}"));
        }
        if parts.method != http::Method::POST {
            let method = parts.method.as_str();
            let message = format!("Received a HEADERS frame with :method {method:?} which should be POST");
            return refusal(StatusCode::METHOD_NOT_ALLOWED, Code::Internal, message);
        }
        if self.timeout == Some(Ok(Duration::ZERO)) {
            return Err((StatusCode::OK, Error::DeadlineExceeded.into()));
        }
        Ok(())
    }
}

/// Whether a request's content type names gRPC, be it in a way that makes a call or not.
/// **Source** etcd v3.7.1 `server/embed/serve.go`, `grpcHandlerFunc`.
pub fn is_named(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    given.windows(CONTENT_TYPE.len()).any(|part| part == CONTENT_TYPE)
}

/// What Go's HTTP server, which stands before gRPC where both are encrypted, answers to a head that makes no call: the
/// status code and the text.
/// **Source** grpc-go v1.82.1 `internal/transport/handler_server.go`, `NewServerHandlerTransport`.
pub fn refusal_of_http<B>(asked: &Request<B>) -> Option<(u16, String)> {
    let first = |name: &str| asked.headers().get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    if asked.method() != http::Method::POST {
        return Some((405, format!("invalid gRPC request method {:?}", asked.method().as_str())));
    }
    let content_type = first("content-type");
    if subtype(content_type).is_none() {
        return Some((415, format!("invalid gRPC request content-type {:?}", text(content_type))));
    }
    match first("grpc-timeout") {
        b"" => None,
        given => timeout(given).err().map(|error| (400, format!("malformed grpc-timeout: {error}"))),
    }
}

/// What follows the separator in a content type of gRPC.
fn subtype(content_type: &[u8]) -> Option<&[u8]> {
    match content_type.strip_prefix(CONTENT_TYPE)? {
        [] => Some(&[]),
        [b'+' | b';', subtype @ ..] => Some(subtype),
        _ => None,
    }
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
///
/// **Errors** anything else, in grpc-go's words.
fn timeout(value: &[u8]) -> Result<Duration, String> {
    let shown = || text(value);
    let (digits, unit) = match value {
        [] | [_] => return Err(format!("transport: timeout string is too short: {:?}", shown())),
        [digits @ .., unit] if value.len() <= 9 => (digits, unit),
        _ => return Err(format!("transport: timeout string is too long: {:?}", shown())),
    };
    let unit = match unit {
        b'n' => Duration::from_nanos(1),
        b'u' => Duration::from_micros(1),
        b'm' => Duration::from_millis(1),
        b'S' => Duration::from_secs(1),
        b'M' => Duration::from_secs(60),
        b'H' => Duration::from_secs(3600),
        _ => return Err(format!("transport: timeout unit is not recognized: {:?}", shown())),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(format!("strconv.ParseUint: parsing {:?}: invalid syntax", text(digits)));
    }
    let count = digits.iter().fold(0, |count: u32, digit| count * 10 + u32::from(digit - b'0'));
    Ok(unit * count)
}

/// The value of a header as text. If it is none, its bytes are shown by their numbers.
fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).map_or_else(|_not_text| value.escape_ascii().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_go_reads_them() {
        let ms = Duration::from_millis;
        for (value, expected) in [
            ("300m", Ok(ms(300))),
            ("1n", Ok(Duration::from_nanos(1))),
            ("7u", Ok(Duration::from_micros(7))),
            ("00000012S", Ok(ms(12_000))),
            ("2M", Ok(ms(120_000))),
            ("99999999H", Ok(Duration::from_secs(99_999_999 * 3600))),
            ("", Err("transport: timeout string is too short: \"\"")),
            ("S", Err("transport: timeout string is too short: \"S\"")),
            ("123456789S", Err("transport: timeout string is too long: \"123456789S\"")),
            ("15", Err("transport: timeout unit is not recognized: \"15\"")),
            ("-1S", Err("strconv.ParseUint: parsing \"-1\": invalid syntax")),
            ("+1S", Err("strconv.ParseUint: parsing \"+1\": invalid syntax")),
            ("1 S", Err("strconv.ParseUint: parsing \"1 \": invalid syntax")),
        ] {
            assert_eq!(timeout(value.as_bytes()), expected.map_err(str::to_owned), "{value}");
        }
    }

    #[test]
    fn content_types_are_grpcs_by_their_beginning() {
        for (value, expected) in [
            ("application/grpc", Some("")),
            ("application/grpc+", Some("")),
            ("application/grpc+proto", Some("proto")),
            ("application/grpc;proto", Some("proto")),
            ("application/grpc-web", None),
            ("application/grpcx", None),
            ("Application/grpc", None),
            ("", None),
        ] {
            assert_eq!(subtype(value.as_bytes()), expected.map(str::as_bytes), "{value}");
        }
    }
}
