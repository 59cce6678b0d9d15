//! Runs on: connection core.
//!
//! The health service of gRPC: a server that answers at all serves.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/health.go`.

use bytes::Bytes;
use proto::health::{self, health_check_response::ServingStatus};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
};
use crate::{error::Error, protobuf::framed};

/// Answers health Check: the server as a whole serves once it answers at all.
///
/// **Errors** a service that is not tracked.
pub(super) fn check(request: health::HealthCheckRequest) -> Result<Bytes, Error> {
    if !request.service.is_empty() {
        return Err(Error::UnknownService);
    }
    let status = ServingStatus::Serving as i32;
    Ok(framed(&health::HealthCheckResponse { status }))
}

/// Answers health List: the server as a whole is the one service that is tracked, under the empty name.
pub(super) fn list() -> health::HealthListResponse {
    let status = ServingStatus::Serving as i32;
    let whole = (String::new(), health::HealthCheckResponse { status });
    health::HealthListResponse { statuses: [whole].into() }
}

/// Serves Watch: the state now, and nothing more until the client leaves, as it never changes.
///
/// **Errors** a message that is no such request; a client that left.
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
