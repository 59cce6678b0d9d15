//! Runs on: connection core.
//!
//! The table of gRPC methods: what is served, and what is known but missing.

/// How messages flow in a method, in the words of gRPC's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Both sides stream.
    Bidi,
}

impl Flow {
    /// The label `grpc_type`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::Bidi => "bidi_stream",
        }
    }
}

macro_rules! methods {
    ($($name:ident = $service:literal / $method:literal, $flow:ident, $served:literal;)*) => {
        /// A gRPC method of etcd's API, or of our own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is named as in its .proto")]
        pub enum Method { $($name,)* }

        impl Method {
            /// Every method, in declaration order.
            pub const ALL: &'static [Method] = &[$(Method::$name,)*];

            /// The method at an HTTP/2 path.
            pub fn at(path: &str) -> Option<Method> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Method::$name),)*
                    _ => None,
                }
            }

            /// Full service name.
            pub fn service(self) -> &'static str {
                match self { $(Method::$name => $service,)* }
            }

            /// Method name.
            pub fn name(self) -> &'static str {
                match self { $(Method::$name => $method,)* }
            }

            /// How its messages flow.
            pub fn flow(self) -> Flow {
                match self { $(Method::$name => Flow::$flow,)* }
            }

            /// Whether this release serves it. The others answer `Unimplemented`.
            pub fn is_served(self) -> bool {
                match self { $(Method::$name => $served,)* }
            }
        }
    };
}

// Frequent methods come first.
methods! {
    Put = "etcdserverpb.KV" / "Put", Unary, true;
    Range = "etcdserverpb.KV" / "Range", Unary, true;
    Txn = "etcdserverpb.KV" / "Txn", Unary, true;
    LeaseKeepAlive = "etcdserverpb.Lease" / "LeaseKeepAlive", Bidi, true;
    Watch = "etcdserverpb.Watch" / "Watch", Bidi, true;
    RangeStream = "etcdserverpb.KV" / "RangeStream", ServerStream, true;
    DeleteRange = "etcdserverpb.KV" / "DeleteRange", Unary, true;
    Compact = "etcdserverpb.KV" / "Compact", Unary, true;
    LeaseGrant = "etcdserverpb.Lease" / "LeaseGrant", Unary, true;
    LeaseRevoke = "etcdserverpb.Lease" / "LeaseRevoke", Unary, true;
    LeaseTimeToLive = "etcdserverpb.Lease" / "LeaseTimeToLive", Unary, true;
    LeaseLeases = "etcdserverpb.Lease" / "LeaseLeases", Unary, true;
    MemberAdd = "etcdserverpb.Cluster" / "MemberAdd", Unary, true;
    MemberRemove = "etcdserverpb.Cluster" / "MemberRemove", Unary, true;
    MemberUpdate = "etcdserverpb.Cluster" / "MemberUpdate", Unary, true;
    MemberList = "etcdserverpb.Cluster" / "MemberList", Unary, true;
    MemberPromote = "etcdserverpb.Cluster" / "MemberPromote", Unary, true;
    Alarm = "etcdserverpb.Maintenance" / "Alarm", Unary, true;
    Status = "etcdserverpb.Maintenance" / "Status", Unary, true;
    Defragment = "etcdserverpb.Maintenance" / "Defragment", Unary, true;
    Hash = "etcdserverpb.Maintenance" / "Hash", Unary, true;
    HashKv = "etcdserverpb.Maintenance" / "HashKV", Unary, true;
    Snapshot = "etcdserverpb.Maintenance" / "Snapshot", ServerStream, true;
    MoveLeader = "etcdserverpb.Maintenance" / "MoveLeader", Unary, true;
    Downgrade = "etcdserverpb.Maintenance" / "Downgrade", Unary, true;
    AuthEnable = "etcdserverpb.Auth" / "AuthEnable", Unary, false;
    AuthDisable = "etcdserverpb.Auth" / "AuthDisable", Unary, false;
    AuthStatus = "etcdserverpb.Auth" / "AuthStatus", Unary, false;
    Authenticate = "etcdserverpb.Auth" / "Authenticate", Unary, false;
    UserAdd = "etcdserverpb.Auth" / "UserAdd", Unary, false;
    UserGet = "etcdserverpb.Auth" / "UserGet", Unary, false;
    UserList = "etcdserverpb.Auth" / "UserList", Unary, false;
    UserDelete = "etcdserverpb.Auth" / "UserDelete", Unary, false;
    UserChangePassword = "etcdserverpb.Auth" / "UserChangePassword", Unary, false;
    UserGrantRole = "etcdserverpb.Auth" / "UserGrantRole", Unary, false;
    UserRevokeRole = "etcdserverpb.Auth" / "UserRevokeRole", Unary, false;
    RoleAdd = "etcdserverpb.Auth" / "RoleAdd", Unary, false;
    RoleGet = "etcdserverpb.Auth" / "RoleGet", Unary, false;
    RoleList = "etcdserverpb.Auth" / "RoleList", Unary, false;
    RoleDelete = "etcdserverpb.Auth" / "RoleDelete", Unary, false;
    RoleGrantPermission = "etcdserverpb.Auth" / "RoleGrantPermission", Unary, false;
    RoleRevokePermission = "etcdserverpb.Auth" / "RoleRevokePermission", Unary, false;
    Lock = "v3lockpb.Lock" / "Lock", Unary, false;
    Unlock = "v3lockpb.Lock" / "Unlock", Unary, false;
    Campaign = "v3electionpb.Election" / "Campaign", Unary, false;
    Proclaim = "v3electionpb.Election" / "Proclaim", Unary, false;
    Leader = "v3electionpb.Election" / "Leader", Unary, false;
    Observe = "v3electionpb.Election" / "Observe", ServerStream, false;
    Resign = "v3electionpb.Election" / "Resign", Unary, false;
    Usage = "orlop.v1.Insight" / "Usage", Unary, true;
    Top = "orlop.v1.Insight" / "Top", Unary, true;
    HealthCheck = "grpc.health.v1.Health" / "Check", Unary, true;
    HealthList = "grpc.health.v1.Health" / "List", Unary, true;
    HealthWatch = "grpc.health.v1.Health" / "Watch", ServerStream, true;
}

/// The text with which grpc-go refuses a path that no service has.
pub fn unknown(path: &str) -> String {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
        return format!("malformed method name: {path:?}");
    };
    if Method::ALL.iter().any(|known| known.service() == service) {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_at_its_path() {
        for method in Method::ALL {
            assert_eq!(Method::at(&format!("/{}/{}", method.service(), method.name())), Some(*method));
        }
        assert_eq!(unknown("/a.B/C"), "unknown service a.B");
        assert_eq!(unknown("/a"), "malformed method name: \"/a\"");
        assert_eq!(unknown("/etcdserverpb.KV/C"), "unknown method C for service etcdserverpb.KV");
    }
}
