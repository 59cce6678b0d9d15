//! Runs on: connection core.
//!
//! What is not gRPC, over HTTP/2. Only clients that chose HTTP/2 when their connection was encrypted come here, as with
//! etcd: curl and probes do.

use std::rc::Rc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, uri::PathAndQuery};
use tokio::task::spawn_local;

use crate::{
    api::desk::Desk,
    log,
    wire::{
        endpoints::{self, Port},
        http1,
    },
};

/// Answers a request whose content is not gRPC's. Its body is not read.
pub fn answer<B>(desk: &Rc<Desk>, port: Port, asked: &Request<B>, mut reply: SendResponse<Bytes>) {
    let text = asked.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let Some(request) = http1::Request::of(asked.method().as_str(), text) else {
        return reply.send_reset(h2::Reason::PROTOCOL_ERROR);
    };
    let (desk, method) = (Rc::clone(desk), asked.method().clone());
    spawn_local(async move {
        let answer = endpoints::answer(&desk, port, &request).await;
        send(&desk, &method, answer, reply);
    });
}

/// Answers a request whose content is gRPC's and whose head makes no call, with a status code and a text.
pub fn refuse(desk: &Desk, asked: &Method, (code, text): (u16, String), reply: SendResponse<Bytes>) {
    let mut answer = http1::Response::text(code, text + "\n");
    if code == 405 {
        answer.lines.insert(0, "Allow: POST".into());
    }
    send(desk, asked, answer, reply);
}

fn send(desk: &Desk, asked: &Method, answer: http1::Response, mut reply: SendResponse<Bytes>) {
    let head = head(&answer, desk.clock.unix_us());
    let is_bodiless = *asked == Method::HEAD || answer.body.is_empty();
    let sent = reply
        .send_response(head, is_bodiless)
        .and_then(|mut stream| if is_bodiless { Ok(()) } else { stream.send_data(answer.body, true) });
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
