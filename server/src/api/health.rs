//! Runs on: connection core.
//!
//! The health service of gRPC. A server that answers at all is healthy, but for the time of a defragmentation if the
//! operator wants its clients to go elsewhere then.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/health.go`.

use bytes::Bytes;
use proto::health::{self, health_check_response::ServingStatus};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    desk::Desk,
};
use crate::{error::Error, protobuf::framed};

fn status(is_serving: bool) -> i32 {
    if is_serving { ServingStatus::Serving as i32 } else { ServingStatus::NotServing as i32 }
}

/// Answers health Check.
///
/// **Errors** a service that is not tracked.
pub(super) fn check(desk: &Desk, request: health::HealthCheckRequest) -> Result<Bytes, Error> {
    if !request.service.is_empty() {
        return Err(Error::UnknownService);
    }
    let status = status(*desk.shared.is_serving.borrow());
    Ok(framed(&health::HealthCheckResponse { status }))
}

/// Answers health List. Only the server as a whole is tracked, under the empty name.
pub(super) fn list(desk: &Desk) -> health::HealthListResponse {
    let status = status(*desk.shared.is_serving.borrow());
    let whole = (String::new(), health::HealthCheckResponse { status });
    health::HealthListResponse { statuses: [whole].into() }
}

/// Serves Watch. It sends the present state, and then each that is another.
///
/// **Errors** a message that does not decode; a client that left.
pub(super) async fn watch<Q: Requests, A: Answers>(
    desk: &Desk,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let request: health::HealthCheckRequest = inbound.only().await?;
    if !request.service.is_empty() {
        let status = ServingStatus::ServiceUnknown as i32;
        outbound.send(framed(&health::HealthCheckResponse { status })).await?;
        outbound.left().await;
        return Err(Error::Canceled);
    }
    let mut state = desk.shared.is_serving.subscribe();
    loop {
        let status = status(*state.borrow_and_update());
        outbound.send(framed(&health::HealthCheckResponse { status })).await?;
        tokio::select! {
            () = outbound.left() => return Err(Error::Canceled),
            changed = state.changed() => changed.expect("the state outlives the desk"),
        }
    }
}
