//! What can go wrong for a client.

use kafka_protocol::error::ResponseError;

/// The transaction before is still being ended.
const CONCURRENT_TRANSACTIONS: i16 = 51;

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection came about.
    #[error("{address}: can't connect: {reason}")]
    Unreachable {
        /// Where to.
        address: String,
        /// Why.
        reason: String,
    },
    /// The connection broke; requests under way may or may not have been carried out.
    #[error("{address}: connection lost: {reason}")]
    Lost {
        /// Where to.
        address: String,
        /// Why.
        reason: String,
    },
    /// No answer came in time.
    #[error("{0}: no answer in time")]
    TimedOut(String),
    /// The broker speaks no version of a request that this client speaks.
    #[error("the broker does not support request {0}")]
    Unsupported(i16),
    /// A broker answered something that is not its protocol.
    #[error("{address}: malformed answer: {reason}")]
    Malformed {
        /// Who.
        address: String,
        /// What.
        reason: String,
    },
    /// The broker refused the request.
    #[error("{about}: {}{}", error_name(*code), message.as_ref().map_or_else(String::new, |text| format!(": {text}")))]
    Refused {
        /// What was asked for.
        about: String,
        /// Kafka's error code.
        code: i16,
        /// The broker's own words.
        message: Option<String>,
    },
    /// A partition has no leader at the moment.
    #[error("{topic}-{partition} has no leader")]
    NoLeader {
        /// Its topic.
        topic: String,
        /// Its index.
        partition: i32,
    },
    /// A record was given up after the delivery time-out or a fatal error.
    #[error("not delivered: {0}")]
    Undelivered(String),
}

impl ClientError {
    /// Whether the same request may succeed a little later or elsewhere.
    pub fn is_retriable(&self) -> bool {
        match self {
            ClientError::Unreachable { .. }
            | ClientError::Lost { .. }
            | ClientError::TimedOut(_)
            | ClientError::NoLeader { .. } => true,
            ClientError::Refused { code, .. } => {
                *code == CONCURRENT_TRANSACTIONS
                    || ResponseError::try_from_code(*code).is_some_and(|error| error.is_retriable())
            }
            _ => false,
        }
    }

    /// What kind of error it is, without what differs from one to the next: Kafka's name where it has one.
    pub fn kind(&self) -> String {
        match self {
            ClientError::Unreachable { .. } => "can't connect".to_owned(),
            ClientError::Lost { .. } => "connection lost".to_owned(),
            ClientError::TimedOut(_) => "no answer in time".to_owned(),
            ClientError::Unsupported(_) => "request not supported".to_owned(),
            ClientError::Malformed { .. } => "malformed answer".to_owned(),
            ClientError::Refused { code, .. } => error_name(*code),
            ClientError::NoLeader { .. } => "no leader".to_owned(),
            ClientError::Undelivered(_) => "not delivered".to_owned(),
        }
    }

    /// Kafka's error code, when a broker answered with one.
    pub fn code(&self) -> Option<i16> {
        match self {
            ClientError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// An error code of an answer as a result.
pub fn check(
    code: i16,
    about: impl FnOnce() -> String,
    message: Option<&str>,
) -> Result<(), ClientError> {
    match code {
        0 => Ok(()),
        code => Err(ClientError::Refused {
            about: about(),
            code,
            message: message.map(str::to_owned),
        }),
    }
}

/// Kafka's name of an error code, such as `UNKNOWN_TOPIC_OR_PARTITION`.
fn error_name(code: i16) -> String {
    let Some(error) = ResponseError::try_from_code(code) else {
        return "NONE".to_owned();
    };
    if let ResponseError::Unknown(code) = error {
        return format!("error {code}");
    }
    let mut name = String::new();
    for letter in format!("{error:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_kafka_names_it() {
        let refused = check(3, || "orders".to_owned(), None).unwrap_err();
        assert_eq!(refused.to_string(), "orders: UNKNOWN_TOPIC_OR_PARTITION");
        assert!(refused.is_retriable());
        let refused = check(36, || "orders".to_owned(), Some("it is there")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "orders: TOPIC_ALREADY_EXISTS: it is there"
        );
        assert!(!refused.is_retriable());
    }
}
