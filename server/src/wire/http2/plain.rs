//! Runs on: connection core.
//!
//! The plain HTTP endpoints over HTTP/2. Only clients that chose HTTP/2 when their connection was encrypted come here
//! with anything but gRPC, as with etcd: curl and probes do.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue, Response, StatusCode, header, request::Parts, uri::PathAndQuery};

use crate::{
    api::desk::Desk,
    log,
    wire::{endpoints, http1},
};

/// Answers a request whose content is not gRPC's. Its body is not read.
pub fn answer(desk: &Desk, parts: &Parts, mut reply: SendResponse<Bytes>) {
    let text = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let Some(request) = http1::Request::of(parts.method.as_str(), text) else {
        return reply.send_reset(h2::Reason::PROTOCOL_ERROR);
    };
    let answer = endpoints::answer(desk, &request);
    let head = head(&answer, desk.clock.unix_us());
    let is_bodiless = request.method == "HEAD" || answer.body.is_empty();
    let sent = reply
        .send_response(head, is_bodiless)
        .and_then(|mut stream| if is_bodiless { Ok(()) } else { stream.send_data(answer.body.into(), true) });
    if let Err(error) = sent {
        tracing::debug!(%error, "client went away before its answer");
    }
}

fn head(answer: &http1::Response, unix_us: u64) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.fields() {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            head.headers_mut().append(name, value);
        }
    }
    if let Ok(date) = HeaderValue::from_str(&log::http_date(unix_us)) {
        head.headers_mut().insert(header::DATE, date);
    }
    head.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
    head
}
