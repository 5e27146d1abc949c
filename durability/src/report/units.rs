//! Figures in words.

/// A time in the unit that suits it.
pub(super) fn duration(us: u64) -> String {
    let us_float = us as f64;
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..9_950 => format!("{:.1} ms", us_float / 1e3),
        9_950..999_500 => format!("{:.0} ms", us_float / 1e3),
        999_500..99_950_000 => format!("{:.2} s", us_float / 1e6),
        _ => format!("{:.0} s", us_float / 1e6),
    }
}

/// A moment of a scenario.
pub(super) fn moment(us: u64) -> String {
    format!("{:.1} s", us as f64 / 1e6)
}

/// A count with its thousands apart.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many of what: `1 record`, `2 records`.
pub(super) fn counted(value: u64, one: &str) -> String {
    let ending = if value == 1 { "" } else { "s" };
    format!("{} {one}{ending}", count(value))
}

/// A figure beside an axis, short.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // At most two decimals, and none that are zero.
    format!("{}{unit}", (scaled * 100.0).round() / 100.0)
}

/// The first `chars_max` characters, with an ellipsis if there were more.
pub(super) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let kept = text.chars().take(chars_max.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_what_matters() {
        let durations = [
            0, 7, 1_000, 9_949, 9_950, 612_400, 999_499, 999_500, 1_234_567,
        ];
        let said = [
            "0", "7 µs", "1.0 ms", "9.9 ms", "10 ms", "612 ms", "999 ms", "1.00 s", "1.23 s",
        ];
        assert_eq!(durations.map(duration), said);
        assert_eq!(duration(99_950_000), "100 s");
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(counted(2_000, "record"), "2,000 records");
        assert_eq!(
            [0.0, 250.0, 2_500.0, 2e6].map(short),
            ["0", "250", "2.5k", "2M"]
        );
        assert_eq!(cut("héron", 5), "héron");
        assert_eq!(cut("hérons", 5), "héro…");
    }
}
