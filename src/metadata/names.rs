//! Which topic names Kafka allows. The rules are part of `apply`, so they never change.

/// Longest topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Why a name is not one for a topic, if it isn't.
pub fn topic_name_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("a topic name can't be empty".into());
    }
    if name == "." || name == ".." {
        return Some(format!("a topic name can't be '{name}'"));
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Some(format!(
            "a topic name can't be longer than {TOPIC_NAME_BYTES_MAX} characters, this one has {}",
            name.len()
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().all(allowed) {
        true => None,
        false => Some(format!(
            "topic name {:?} holds other characters than ASCII letters, digits, '.', '_' and '-'",
            name
        )),
    }
}

/// Names with equal keys can't both exist: metric names can't tell `.` from `_`.
pub fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_refuses_are_refused() {
        let longest = "x".repeat(TOPIC_NAME_BYTES_MAX);
        for name in [
            "a",
            "a.b",
            "A_b-9",
            "...",
            "__consumer_offsets",
            longest.as_str(),
        ] {
            assert_eq!(topic_name_fault(name), None, "{name}");
        }
        let too_long = "x".repeat(TOPIC_NAME_BYTES_MAX + 1);
        for name in ["", ".", "..", "a b", "ä", "a/b", "a\0", too_long.as_str()] {
            assert!(topic_name_fault(name).is_some(), "{name}");
        }
        assert_eq!(collision_key("a.b"), collision_key("a_b"));
    }
}
