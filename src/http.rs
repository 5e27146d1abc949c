//! The HTTP listener: `/health`, for load balancers, scripts and people, and
//! `/metrics`, for Prometheus.
//!
//! It reads snapshots that the node gives; it owns nothing and changes nothing.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;

/// How a broker is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// Whether it takes part in the cluster and serves clients.
    pub ready: bool,
    /// Its id.
    pub node_id: u32,
    /// The cluster it belongs to, once known.
    pub cluster_id: Option<String>,
    /// The broker that leads the metadata group, once known.
    pub controller_id: Option<u32>,
    /// Brokers that are alive, as this one sees it.
    pub brokers_alive: Vec<u32>,
    /// Brokers that are not.
    pub brokers_dead: Vec<u32>,
}

/// Gives the present state of the broker.
pub type HealthSource = Arc<dyn Fn() -> Health + Send + Sync>;

/// Gives the metrics of the moment, in OpenMetrics' text format.
pub type MetricsSource = Arc<dyn Fn() -> String + Send + Sync>;

/// The format of `/metrics`.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the task is dropped. `/health` answers 200 when ready, else 503.
pub async fn serve(
    listener: TcpListener,
    health: HealthSource,
    metrics: MetricsSource,
) -> std::io::Result<()> {
    let health = move || {
        let health = health();
        let status = match health.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        async move { (status, Json(health)) }
    };
    // Its time grows with the partitions: clients' requests don't wait for it.
    let metrics = move || {
        let metrics = metrics.clone();
        async move {
            let written = tokio::task::spawn_blocking(move || metrics())
                .await
                .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
            Ok::<_, StatusCode>(([(CONTENT_TYPE, OPENMETRICS)], written))
        }
    };
    let router = axum::Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics));
    axum::serve(listener, router).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_those_of_the_moment_and_say_their_format() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scrapes = std::sync::atomic::AtomicU32::new(0);
        let metrics = move || {
            let scrape = scrapes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            format!("scrape {scrape}")
        };
        let health: HealthSource = Arc::new(|| panic!("nobody asks"));
        let server = tokio::spawn(serve(listener, health, Arc::new(metrics)));
        for scrape in 0..2 {
            let answer = ask(address, "/metrics").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(OPENMETRICS), "{answer}");
            assert!(
                answer.ends_with(&format!("\r\n\r\nscrape {scrape}")),
                "{answer}"
            );
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_broker_that_is_not_ready_answers_503() {
        for (ready, status) in [(true, "200"), (false, "503")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let source = move || Health {
                ready,
                node_id: 7,
                cluster_id: None,
                controller_id: Some(7),
                brokers_alive: vec![7],
                brokers_dead: vec![],
            };
            let metrics: MetricsSource = Arc::new(String::new);
            let server = tokio::spawn(serve(listener, Arc::new(source), metrics));
            let answer = ask(address, "/health").await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
            assert!(answer.contains("\"node_id\":7"), "{answer}");
            server.abort();
        }
    }
}
