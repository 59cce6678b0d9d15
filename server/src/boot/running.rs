//! Runs on: core 0, before the member's threads.
//!
//! What the members of a cluster that runs say about it, to one that is about to start.
//!
//! All are asked who the members are at once, and the first usable answer counts, in the order of the URLs: those who
//! do not answer cost the wait for one of them, however many they are. What else is asked goes to one URL after the
//! other. Who does not answer in time is passed by. As in etcd, an answer is usable if its body and its header are,
//! whatever its status.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/cluster_util.go`.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use consensus::{Member, peer::hello};

use crate::{
    api::others::{Answered, Asking, Others},
    config::Config,
};

/// The longest answer that is taken. **Units** bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A cluster as one of its members shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub cluster_id: u64,
    /// Its members, ascending by id; at least one.
    pub members: Vec<Member>,
}

impl fmt::Display for Running {
    /// As Go prints etcd's cluster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ClusterID:{:x} Members:[", self.cluster_id)?;
        for (position, Member { id, peer_urls, is_learner, name, client_urls, .. }) in self.members.iter().enumerate() {
            let (blank, urls, clients) =
                (if position > 0 { " " } else { "" }, peer_urls.join(" "), client_urls.join(" "));
            write!(
                f,
                "{blank}&{{ID:{id:x} RaftAttributes:{{PeerURLs:[{urls}] IsLearner:{is_learner}}} \
                 Attributes:{{Name:{name} ClientURLs:[{clients}]}}}}"
            )?;
        }
        f.write_str("] RemovedMemberIDs:[]}")
    }
}

/// Why nothing is known of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Nobody has given a usable answer.
    #[error("could not retrieve cluster information from the given URLs")]
    NoAnswer,
    /// A cluster without members: the one who answers does not know them itself.
    #[error("failed to get raft cluster member(s) from the given URLs")]
    NoMembers,
}

/// The peer URLs of all members but `config`'s own, in lexical order.
pub fn urls_of_others(config: &Config) -> Vec<String> {
    let others = config.initial_cluster.iter().filter(|(name, _)| **name != config.name);
    let mut urls: Vec<String> = others.flat_map(|(_, urls)| urls).map(ToString::to_string).collect();
    urls.sort();
    urls
}

/// Asks who the members are, at all URLs side by side, each for at most `wait`. The first usable answer counts, in the
/// order of the URLs. Failures are logged if `tells`.
///
/// **Errors** nobody knows.
pub async fn members(others: &dyn Others, urls: &[String], wait: Duration, tells: bool) -> Result<Running, Unknown> {
    let mut asked: Vec<_> = urls.iter().map(|url| Pending::new(get(others, url, "/members", wait))).collect();
    for (position, url) in urls.iter().enumerate() {
        let answered = poll_fn(|context| {
            asked[position..].iter_mut().for_each(|pending| pending.poll(context));
            asked[position].answer.take().map_or(Poll::Pending, Poll::Ready)
        });
        match answered.await.and_then(|answered| read_members(&answered)) {
            Ok(Running { members, .. }) if members.is_empty() => return Err(Unknown::NoMembers),
            Ok(running) => return Ok(running),
            Err(error) if tells => {
                tracing::warn!(address = %format!("{url}/members"), error, "failed to get cluster response");
            }
            Err(_untold) => {}
        }
    }
    Err(Unknown::NoAnswer)
}

/// A question that is asked beside others, and its answer as soon as it is there.
struct Pending<F: Future> {
    question: Option<Pin<Box<F>>>,
    answer: Option<F::Output>,
}

impl<F: Future> Pending<F> {
    fn new(question: F) -> Self {
        Self { question: Some(Box::pin(question)), answer: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(question) = &mut self.question
            && let Poll::Ready(answer) = question.as_mut().poll(context)
        {
            (self.question, self.answer) = (None, Some(answer));
        }
    }
}

fn read_members(answered: &Answered) -> Result<Running, String> {
    let read = serde_json::from_slice::<Vec<Member>>(&answered.body);
    let mut members = read.map_err(|error| format!("failed to unmarshal cluster response: {error}"))?;
    members.sort_by_key(|member| member.id);
    let shown = answered.headers.get("x-etcd-cluster-id");
    let cluster_id = hello::id(shown).ok_or_else(|| format!("failed to parse cluster ID: {shown:?}"))?;
    Ok(Running { cluster_id, members })
}

/// Asks the member at `urls` which version its cluster has, or `not_decided`; `None` if it does not say.
pub async fn cluster_version(others: &dyn Others, urls: &[String], wait: Duration) -> Option<String> {
    let read = |body: &[u8]| {
        let shown: serde_json::Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        Ok(shown["etcdcluster"].as_str().unwrap_or_default().to_owned())
    };
    first(others, urls, "/version", wait, read).await
}

/// Asks the member at `urls` whether its cluster is being downgraded; `None` if it does not say.
pub async fn is_downgrading(others: &dyn Others, urls: &[String], wait: Duration) -> Option<bool> {
    let read = |body: &[u8]| match body {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err("the answer is neither true nor false".to_owned()),
    };
    first(others, urls, "/downgrade/enabled", wait, read).await
}

/// The first answer at `urls` that can be read.
async fn first<T>(
    others: &dyn Others,
    urls: &[String],
    path: &str,
    wait: Duration,
    read: impl Fn(&[u8]) -> Result<T, String>,
) -> Option<T> {
    for url in urls {
        match get(others, url, path, wait).await.and_then(|answered| read(&answered.body)) {
            Ok(found) => return Some(found),
            Err(error) => tracing::warn!(address = %format!("{url}{path}"), error, "failed to ask a member"),
        }
    }
    None
}

async fn get(others: &dyn Others, url: &str, path: &str, wait: Duration) -> Result<Answered, String> {
    let asking =
        Asking { method: "GET", path: path.to_owned(), answer_bytes_max: ANSWER_BYTES_MAX, ..Asking::default() };
    let answered = tokio::time::timeout(wait, others.ask(url, &asking)).await;
    answered.unwrap_or_else(|_late| Err(format!("{url}: no answer within {} s", wait.as_secs())))
}

#[cfg(test)]
mod tests {
    use consensus::peer::http1::Headers;
    use tokio::sync::Barrier;

    use super::*;
    use crate::api::others::Awaited;

    /// Who answers only once all of them are asked; a host that is called `silent` never does.
    struct Together(Barrier);

    impl Others for Together {
        fn ask<'a>(&'a self, url: &'a str, _: &'a Asking) -> Awaited<'a> {
            Box::pin(async move {
                self.0.wait().await;
                let Some(id) = url.strip_prefix("http://") else { return Err("refused".to_owned()) };
                if id == "silent" {
                    return std::future::pending().await;
                }
                let headers = Headers::new(vec![("x-etcd-cluster-id".to_owned(), id.to_owned())]);
                let body = br#"[{"id":1,"peerURLs":["http://a:1"]}]"#[..].into();
                Ok(Answered { status: 200, headers, body })
            })
        }
    }

    #[tokio::test]
    async fn all_are_asked_at_once_and_the_first_usable_answer_counts_in_their_order() {
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
        let cases: [(&[&str], Duration, Result<u64, Unknown>); 4] = [
            (&["refuses", "http://b", "http://c"], long, Ok(0xb)),
            (&["refuses", "http://c", "http://silent"], long, Ok(0xc)),
            (&["http://silent", "http://silent", "http://d"], short, Ok(0xd)),
            (&["http://silent", "refuses", "refuses"], short, Err(Unknown::NoAnswer)),
        ];
        for (urls, wait, expected) in cases {
            let (together, urls) = (Together(Barrier::new(urls.len())), urls.iter().map(|url| (*url).to_owned()));
            let found = members(&together, &urls.collect::<Vec<_>>(), wait, true).await;
            assert_eq!(found.map(|running| running.cluster_id), expected);
        }
    }
}
