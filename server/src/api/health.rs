//! Runs on: connection core.
//!
//! The health service of gRPC. A server that answers at all is healthy.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/health.go`.

use bytes::Bytes;
use proto::health::{self, health_check_response::ServingStatus};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
};
use crate::{error::Error, protobuf::framed};

/// Answers health Check. The server as a whole serves once it answers at all.
///
/// **Errors** a service that is not tracked.
pub(super) fn check(request: health::HealthCheckRequest) -> Result<Bytes, Error> {
    if !request.service.is_empty() {
        return Err(Error::UnknownService);
    }
    let status = ServingStatus::Serving as i32;
    Ok(framed(&health::HealthCheckResponse { status }))
}

/// Answers health List. Only the server as a whole is tracked, under the empty name.
pub(super) fn list() -> health::HealthListResponse {
    let status = ServingStatus::Serving as i32;
    let whole = (String::new(), health::HealthCheckResponse { status });
    health::HealthListResponse { statuses: [whole].into() }
}

/// Serves Watch. It sends the present state, then nothing until the client leaves: the state never changes.
///
/// **Errors** a message that does not decode; a client that left.
pub(super) async fn watch<Q: Requests, A: Answers>(
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let request: health::HealthCheckRequest = inbound.only().await?;
    let known = request.service.is_empty();
    let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown } as i32;
    outbound.send(framed(&health::HealthCheckResponse { status })).await?;
    outbound.left().await;
    Err(Error::Canceled)
}
