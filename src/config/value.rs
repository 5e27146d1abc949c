//! The types that settings have, and how their texts are read.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("HOST:PORT is expected")?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
        if host.is_empty() || host.len() > 255 || host.contains(char::is_whitespace) {
            return Err("HOST:PORT is expected".to_owned());
        }
        if port == 0 {
            return Err("port 0 can't be connected to".to_owned());
        }
        Ok(HostPort {
            host: host.to_owned(),
            port,
        })
    }
}

/// Brokers of the static configuration: id and address of the peer listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(pub Vec<(u32, SocketAddr)>);

/// A type that a setting can have.
pub(super) trait Value: Sized {
    /// Reads a text, or says what is expected.
    fn parse(text: &str) -> Result<Self, String>;
    /// A text that `parse` reads back.
    fn show(&self) -> String;
}

macro_rules! value_by_from_str {
    ($($type:ty: $expected:literal,)+) => { $(impl Value for $type {
        fn parse(text: &str) -> Result<Self, String> {
            text.parse().map_err(|_| concat!($expected, " is expected").to_owned())
        }
        fn show(&self) -> String {
            self.to_string()
        }
    })+ };
}

value_by_from_str! {
    u16: "a number from 0 to 65535",
    u32: "a number from 0 to 4294967295",
    u64: "a number",
    bool: "true or false",
    SocketAddr: "IP:PORT",
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("a path is expected".to_owned()),
            false => Ok(PathBuf::from(text)),
        }
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Option<String> {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
    }
    fn show(&self) -> String {
        self.clone().unwrap_or_default()
    }
}

impl Value for Option<u64> {
    fn parse(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Ok(None),
            false => u64::parse(text).map(Some),
        }
    }
    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, u64::to_string)
    }
}

impl Value for Option<HostPort> {
    fn parse(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Ok(None),
            false => text.parse().map(Some),
        }
    }
    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, HostPort::to_string)
    }
}

impl Value for Peers {
    fn parse(text: &str) -> Result<Self, String> {
        let peer = |text: &str| {
            let (id, address) = text.trim().split_once('@')?;
            Some((id.parse().ok()?, address.parse().ok()?))
        };
        let texts = text.split(',').filter(|text| !text.trim().is_empty());
        let peers: Option<Vec<_>> = texts.map(peer).collect();
        peers
            .map(Peers)
            .ok_or_else(|| "ID@IP:PORT,ID@IP:PORT,… is expected".to_owned())
    }
    fn show(&self) -> String {
        let peers = self.0.iter().map(|(id, address)| format!("{id}@{address}"));
        peers.collect::<Vec<_>>().join(",")
    }
}
