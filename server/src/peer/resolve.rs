//! Runs on: core 0, before the member serves.
//!
//! Whether two lists of URLs lead to the same places, though one may name a host that the other gives as an address.
//!
//! Invariants: lists that are the same as texts are equal, and nothing is resolved. Neither `localhost` nor a Unix
//! socket is ever resolved. A name that cannot be resolved is asked for again, until the time of all comparisons
//! together is over.
//!
//! **Source** etcd v3.7.1 `pkg/netutil/{netutil,host_normalize}.go`.

use std::{future::Future, io, net::IpAddr, time::Duration};

use crate::{
    clock::Clock,
    config::{Scheme, Url, quoted},
};

/// How long names are asked for, in all comparisons of one resolver. **Source** etcd v3.7.1 `server/config/config.go`,
/// `advertiseMatchesCluster`.
const RESOLVE_MAX: Duration = Duration::from_secs(30);
/// Time between two questions for a name.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Finds the addresses of hosts.
pub trait Lookup {
    /// The first address of `host`.
    fn lookup(&self, host: &str) -> impl Future<Output = io::Result<IpAddr>>;
}

/// Asks the system's resolver.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Lookup for System {
    async fn lookup(&self, host: &str) -> io::Result<IpAddr> {
        let mut found = tokio::net::lookup_host((host, 0)).await?;
        found.next().map(|address| address.ip()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// See the head of this file.
pub struct Resolver<L> {
    lookup: L,
    clock: Clock,
    until: Duration,
}

/// A URL without what makes no difference.
#[derive(PartialEq, Eq)]
struct Place<'a> {
    scheme: Scheme,
    host: Result<IpAddr, &'a str>,
    port: &'a str,
}

impl<'a> Place<'a> {
    fn of(url: &'a Url) -> Self {
        Self { scheme: url.scheme, host: url.host.parse().map_err(|_a_name| url.host.as_str()), port: &url.port }
    }
}

impl<L: Lookup> Resolver<L> {
    /// A resolver whose time begins now.
    pub fn new(lookup: L, clock: Clock) -> Self {
        let until = clock.now() + RESOLVE_MAX;
        Self { lookup, clock, until }
    }

    /// Checks that `a` and `b` lead to the same places.
    ///
    /// **Errors** why not, in etcd's words.
    pub async fn check_equal(&self, a: &[Url], b: &[Url]) -> Result<(), String> {
        if a.len() != b.len() {
            return Err(format!("len({}) != len({})", quoted(a), quoted(b)));
        }
        let (a, b) = (sorted(a.to_vec()), sorted(b.to_vec()));
        if difference(&a, &b).is_none() {
            return Ok(());
        }
        let (a, b) = (sorted(self.resolve_all(a).await?), sorted(self.resolve_all(b).await?));
        match difference(&a, &b) {
            Some((a, b)) => Err(format!("resolved urls: {:?} != {:?}", a.as_str(), b.as_str())),
            None => Ok(()),
        }
    }

    async fn resolve_all(&self, mut urls: Vec<Url>) -> Result<Vec<Url>, String> {
        for url in &mut urls {
            if matches!(url.scheme, Scheme::Http | Scheme::Https) && url.host != "localhost" {
                let address = self.resolve(url).await;
                let address = address.map_err(|why| format!("failed to resolve {:?} ({why})", url.as_str()))?;
                *url = on(url, address);
            }
        }
        Ok(urls)
    }

    /// The address of the host of `url`.
    async fn resolve(&self, url: &Url) -> Result<IpAddr, String> {
        if let Ok(address) = url.host.parse() {
            return Ok(address);
        }
        let mut why = "context deadline exceeded".to_owned();
        loop {
            let left = self.until.saturating_sub(self.clock.now());
            if left.is_zero() {
                tracing::warn!(%url, host = url.host, error = why, "failed to resolve URL Host; returning");
                return Err(why);
            }
            match tokio::time::timeout(left, self.lookup.lookup(&url.host)).await {
                Ok(Ok(address)) => {
                    tracing::info!(%url, host = url.host, "resolved-addr" = %address, "resolved URL Host");
                    return Ok(address);
                }
                Ok(Err(error)) => why = format!("lookup {}: {error}", url.host),
                Err(_late) => why = format!("lookup {}: i/o timeout", url.host),
            }
            let wait = RETRY_AFTER.min(self.until.saturating_sub(self.clock.now()));
            tracing::warn!(%url, host = url.host, "retry-interval" = "1s", error = why, "failed to resolve URL Host");
            tokio::time::sleep(wait).await;
        }
    }
}

fn sorted(mut urls: Vec<Url>) -> Vec<Url> {
    urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    urls
}

/// The first two URLs of the same position that differ.
fn difference<'a>(a: &'a [Url], b: &'a [Url]) -> Option<(&'a Url, &'a Url)> {
    a.iter().zip(b).find(|(a, b)| Place::of(a) != Place::of(b))
}

/// The same URL on another host.
fn on(url: &Url, address: IpAddr) -> Url {
    let scheme = if url.scheme == Scheme::Https { "https" } else { "http" };
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    Url::parse(&format!("{scheme}://{host}:{}", url.port)).expect("an address and a port that were checked")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Knows `a.example` and `b.example` once it was asked often enough. Each question takes ten seconds of its clock.
    struct Slow {
        clock: Clock,
        failures_left: Cell<u32>,
    }

    impl Lookup for Slow {
        async fn lookup(&self, host: &str) -> io::Result<IpAddr> {
            self.clock.advance(Duration::from_secs(10));
            let left = self.failures_left.get();
            self.failures_left.set(left.saturating_sub(1));
            match host {
                _ if left > 0 => Err(io::Error::other("not now")),
                "a.example" => Ok([192, 0, 2, 1].into()),
                "b.example" => Ok([192, 0, 2, 2].into()),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }
    }

    async fn compared(a: &str, b: &str, failures: u32) -> Result<(), String> {
        let clock = Clock::manual(1);
        let urls = |text: &str| text.split(',').map(|url| Url::parse(url).unwrap()).collect::<Vec<_>>();
        let resolver = Resolver::new(Slow { clock: clock.clone(), failures_left: Cell::new(failures) }, clock);
        resolver.check_equal(&urls(a), &urls(b)).await
    }

    #[tokio::test]
    async fn urls_are_equal_if_they_lead_to_the_same_places() {
        let equal = [
            ("http://nowhere:1", "http://nowhere:1"),
            ("http://x:2,http://x:1", "http://x:1,http://x:2"),
            ("http://[::1]:1", "http://[0:0:0:0:0:0:0:1]:1"),
            ("http://a.example:1", "http://192.0.2.1:1"),
            ("http://192.0.2.2:1,http://192.0.2.1:1", "http://a.example:1,http://b.example:1"),
            ("unix://a:1", "unix://a:1"),
        ];
        for (a, b) in equal {
            assert_eq!(compared(a, b, 0).await, Ok(()), "{a} {b}");
        }
        let unequal = [
            ("http://a:1", "http://a:1,http://a:2", r#"len(["http://a:1"]) != len(["http://a:1" "http://a:2"])"#),
            ("http://localhost:1", "http://127.0.0.1:1", "\"http://localhost:1\" != \"http://127.0.0.1:1\""),
            ("http://a.example:1", "http://b.example:1", "\"http://192.0.2.1:1\" != \"http://192.0.2.2:1\""),
            ("http://a.example:1", "https://192.0.2.1:1", "\"http://192.0.2.1:1\" != \"https://192.0.2.1:1\""),
            ("unix://a.example:1", "unix://b:1", "\"unix://a.example:1\" != \"unix://b:1\""),
        ];
        for (a, b, why) in unequal {
            let said = compared(a, b, 0).await.unwrap_err();
            assert_eq!(said.trim_start_matches("resolved urls: "), why, "{a} {b}");
        }
    }

    #[tokio::test]
    async fn a_name_is_asked_for_again_until_its_time_is_over() {
        assert_eq!(compared("http://a.example:1", "http://192.0.2.1:1", 1).await, Ok(()));
        let why = compared("http://a.example:1", "http://192.0.2.1:1", 9).await;
        assert_eq!(why.unwrap_err(), "failed to resolve \"http://a.example:1\" (lookup a.example: not now)");
        assert_eq!(System.lookup("localhost").await.map(|address| address.is_loopback()).ok(), Some(true));
    }
}
