//! The HTTP listener: `/health`, for load balancers, scripts and people.
//!
//! It reads a snapshot that the node gives; it owns nothing and changes nothing.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
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

/// Serves until the task is dropped. `/health` answers 200 when ready, else 503.
pub async fn serve(listener: TcpListener, health: HealthSource) -> std::io::Result<()> {
    let answer = move || {
        let health = health();
        let status = match health.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        async move { (status, Json(health)) }
    };
    axum::serve(listener, axum::Router::new().route("/health", get(answer))).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

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
            let server = tokio::spawn(serve(listener, Arc::new(source)));
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            socket.write_all(request).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
            assert!(answer.contains("\"node_id\":7"), "{answer}");
            server.abort();
        }
    }
}
