//! The fleet over HTTP: figures for Prometheus, the status as JSON and as events, and the operator's words.
//!
//! Who asks from this machine, by one of its own names, may read. Everybody else needs the operator's token, and so does
//! whoever wants to change something: `Authorization: Bearer TOKEN`, which no page of another site can send.
//!
//! ```text
//! GET  /                           the page, with /page.css and /page.js
//! GET  /metrics                    Prometheus text
//! GET  /api/status                 as `status --json`
//! GET  /api/releases               as `releases --json`
//! GET  /api/events                 the same status as server-sent events, whenever it changed
//! POST /api/rollouts/CHANNEL/ACT   pause, resume, halt, retry; answers as `rollout status --json`
//! GET  /shoal-node                 the node's binary, to everybody ([`crate::boot::binary`])
//! ```
//!
//! **Invariant:** only this folder speaks HTTP.

mod metrics;
mod page;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use shoal_proto::release::Channel;
use tokio::net::TcpListener;

use crate::home::Home;
use crate::releases;
use crate::rollouts::Act;
use crate::serve::Desk;

/// How often it is looked whether the status changed.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} for the dashboard")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the dashboard stopped")]
    Stopped(#[source] std::io::Error),
    #[error(transparent)]
    Home(#[from] crate::home::Error),
}

/// A dashboard that listens and does not answer yet.
#[derive(Debug)]
pub struct Dashboard {
    listener: TcpListener,
    office: Office,
    public: Router,
}

#[derive(Clone, Debug)]
struct Office {
    home: Arc<Home>,
    desk: Arc<Desk>,
    token: Arc<str>,
}

impl Dashboard {
    /// Binds the address. `public` are paths that everybody may have.
    pub async fn listen(
        home: Arc<Home>,
        desk: Arc<Desk>,
        address: SocketAddr,
        public: Router,
    ) -> Result<Self, Error> {
        let token = home.operator_token()?.into();
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        if let Ok(bound) = listener.local_addr() {
            home.write_http_port(bound.port())?;
        }
        Ok(Self { listener, office: Office { home, desk, token }, public })
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until the future is dropped.
    pub async fn answer(self) -> Result<(), Error> {
        let routes = Router::new()
            .merge(page::routes())
            .route("/metrics", get(scrape))
            .route("/api/status", get(status))
            .route("/api/releases", get(releases))
            .route("/api/events", get(events))
            .route("/api/rollouts/{channel}/{act}", post(act))
            .layer(middleware::from_fn_with_state(self.office.clone(), admit))
            .with_state(self.office)
            .merge(self.public);
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(self.listener, routes).await.map_err(Error::Stopped)
    }
}

/// Lets a request in that may be answered.
async fn admit(
    State(office): State<Office>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if may(request.method(), from.ip(), request.headers(), &office.token) {
        next.run(request).await
    } else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, challenge, "this needs the operator's token\n").into_response()
    }
}

/// Whether a request from there may be answered, whatever it is about.
fn may(method: &Method, from: IpAddr, headers: &HeaderMap, token: &str) -> bool {
    let only_reads = matches!(*method, Method::GET | Method::HEAD);
    let is_here = from.to_canonical().is_loopback() && names_loopback(headers);
    bears(headers, token) || (only_reads && is_here)
}

fn bears(headers: &HeaderMap, token: &str) -> bool {
    let given =
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Hashes take the same time to compare wherever they differ.
    given.is_some_and(|given| shoal_proto::cid::Cid::of(given) == shoal_proto::cid::Cid::of(token.as_bytes()))
}

/// Whether the request is for a name of the loopback: a page of another site could have its own name lead here.
fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn failed(error: impl Into<anyhow::Error>) -> Response {
    (StatusCode::CONFLICT, format!("{:#}\n", error.into())).into_response()
}

async fn scrape(State(office): State<Office>) -> Response {
    match office.desk.fleet().await {
        Ok(report) => {
            let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            (kind, metrics::text(&report)).into_response()
        }
        Err(error) => failed(error),
    }
}

async fn status(State(office): State<Office>) -> Response {
    office.desk.fleet().await.map_or_else(failed, |report| Json(report).into_response())
}

async fn releases(State(office): State<Office>) -> Response {
    let channels = releases::load(&office.home);
    channels.map_or_else(failed, |channels| Json(serde_json::json!({ "channels": channels })).into_response())
}

async fn events(State(office): State<Office>) -> impl IntoResponse {
    let changes = futures::stream::unfold((office, String::new()), |(office, said)| async move {
        loop {
            let report = office.desk.fleet().await.ok()?;
            let text = serde_json::to_string(&report).ok()?;
            if text != said {
                return Some((Ok::<_, Infallible>(Event::default().data(&text)), (office, text)));
            }
            tokio::time::sleep(EVENT_INTERVAL).await;
        }
    });
    Sse::new(changes).keep_alive(KeepAlive::default())
}

async fn act(State(office): State<Office>, Path((channel, act)): Path<(String, String)>) -> Response {
    let act = match act.as_str() {
        "pause" => Act::Pause,
        "resume" => Act::Resume,
        "halt" => Act::Halt,
        "retry" => Act::Retry,
        _ => return (StatusCode::NOT_FOUND, format!("{act:?} is nothing to do\n")).into_response(),
    };
    let channel: Channel = match channel.parse() {
        Ok(channel) => channel,
        Err(error) => return (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    };
    office.desk.act(channel, act).await.map_or_else(failed, |report| Json(report).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_names_of_the_loopback_are_its_own() {
        for own in ["localhost", "localhost:80", "127.0.0.1:9", "127.0.0.9", "[::1]:80", "[::1]"] {
            assert!(names_loopback(&with(header::HOST, own)), "{own}");
        }
        for other in
            ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[fe80::1]", ""]
        {
            assert!(!names_loopback(&with(header::HOST, other)), "{other}");
        }
        assert!(!names_loopback(&HeaderMap::new()));
    }

    #[test]
    fn from_another_host_nothing_may_be_read_without_the_token_and_from_here_nothing_changed() {
        let own = with(header::HOST, "localhost:80");
        let mut knows = own.clone();
        knows.insert(header::AUTHORIZATION, "Bearer secret".parse().unwrap());
        let (here, mapped, there) = ("127.0.0.1", "::ffff:127.0.0.1", "10.0.0.7");
        let may =
            |method: Method, from: &str, headers| may(&method, from.parse().unwrap(), headers, "secret");
        assert!([here, mapped, "::1"].iter().all(|from| may(Method::GET, from, &own)));
        assert!(!may(Method::GET, there, &own) && !may(Method::HEAD, "fe80::1", &own));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            assert!(!may(method.clone(), here, &own), "{method}");
        }
        assert!(may(Method::GET, there, &knows) && may(Method::POST, there, &knows));
    }

    #[test]
    fn only_the_whole_token_counts() {
        let bears = |value| bears(&with(header::AUTHORIZATION, value), "secret");
        assert!(bears("Bearer secret"));
        for wrong in ["Bearer secre", "Bearer secret1", "secret", "Bearer ", "Basic secret"] {
            assert!(!bears(wrong), "{wrong}");
        }
    }
}
