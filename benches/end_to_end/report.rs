//! Figures, and how they are shown: a line a target, and the ratio below.

use comfy_table::{Table, presets};
use serde::Serialize;

/// What one load gave.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// Megabytes (10^6) of record values acknowledged or read a second.
    pub(crate) mb_a_second: f64,
    /// Records a second.
    pub(crate) records_a_second: f64,
    /// Median time from append to acknowledgement.
    pub(crate) p50_ms: Option<f64>,
    /// 99% are faster.
    pub(crate) p99_ms: Option<f64>,
    /// 99.9% are faster.
    pub(crate) p999_ms: Option<f64>,
    /// Cores that the brokers kept busy.
    pub(crate) cpu_cores: f64,
    /// CPU seconds of the brokers for 10^9 bytes.
    pub(crate) cpu_seconds_a_gb: f64,
    /// Bytes sent to the device for each byte.
    pub(crate) written_a_byte: f64,
    /// Memory of the brokers at the end.
    pub(crate) resident_mb: f64,
}

/// Figures of one target.
#[derive(Clone, Serialize)]
pub(crate) struct Row {
    /// The load.
    pub(crate) scenario: &'static str,
    /// Whose they are.
    pub(crate) target: String,
    /// The figures.
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

impl Figures {
    /// As a line of progress.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{:.1} MB/s, {:.0} records/s, p50 {} p99 {} p99.9 {} ms, {:.1} CPU-s/GB, {:.2} cores, {:.0} MB",
            self.mb_a_second,
            self.records_a_second,
            shown(self.p50_ms),
            shown(self.p99_ms),
            shown(self.p999_ms),
            self.cpu_seconds_a_gb,
            self.cpu_cores,
            self.resident_mb,
        )
    }

    fn columns(&self) -> [Option<f64>; 9] {
        [
            Some(self.mb_a_second),
            Some(self.records_a_second),
            self.p50_ms,
            self.p99_ms,
            self.p999_ms,
            Some(self.cpu_seconds_a_gb),
            Some(self.cpu_cores),
            Some(self.written_a_byte),
            Some(self.resident_mb),
        ]
    }

    fn from_columns(columns: [Option<f64>; 9]) -> Figures {
        let [
            mb,
            records,
            p50_ms,
            p99_ms,
            p999_ms,
            cpu_gb,
            cores,
            written,
            resident,
        ] = columns;
        Figures {
            mb_a_second: mb.unwrap_or(0.0),
            records_a_second: records.unwrap_or(0.0),
            p50_ms,
            p99_ms,
            p999_ms,
            cpu_seconds_a_gb: cpu_gb.unwrap_or(0.0),
            cpu_cores: cores.unwrap_or(0.0),
            written_a_byte: written.unwrap_or(0.0),
            resident_mb: resident.unwrap_or(0.0),
        }
    }
}

fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 1000.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// One row for each load and target: the median of its rounds.
pub(crate) fn medians(rows: Vec<Row>) -> Vec<Row> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        let same = |group: &&mut Vec<Row>| {
            group[0].scenario == row.scenario && group[0].target == row.target
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let median = |group: Vec<Row>| {
        let columns: Vec<_> = group.iter().map(|row| row.figures.columns()).collect();
        let middle = std::array::from_fn(|column| {
            let mut values: Vec<f64> = columns.iter().filter_map(|row| row[column]).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        });
        Row {
            figures: Figures::from_columns(middle),
            ..group[0].clone()
        }
    };
    groups.into_iter().map(median).collect()
}

/// Rows by load, with the ratio of drave to Kafka where both are there.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header([
            "load",
            "brokers",
            "MB/s",
            "records/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU-s/GB",
            "cores",
            "written/byte",
            "RSS MB",
        ]);
    let mut scenarios: Vec<&str> = Vec::new();
    for row in rows {
        if !scenarios.contains(&row.scenario) {
            scenarios.push(row.scenario);
        }
    }
    for scenario in scenarios {
        let of = |target: &str| {
            rows.iter()
                .find(|row| row.scenario == scenario && row.target == target)
        };
        for row in rows.iter().filter(|row| row.scenario == scenario) {
            let cells = row.figures.columns().map(shown);
            table.add_row(
                [scenario.to_owned(), row.target.clone()]
                    .into_iter()
                    .chain(cells),
            );
        }
        if let (Some(drave), Some(kafka)) = (of("drave"), of("kafka")) {
            let pairs = drave
                .figures
                .columns()
                .into_iter()
                .zip(kafka.figures.columns());
            let ratios = pairs.map(|pair| match pair {
                (Some(drave), Some(kafka)) if kafka > 0.0 => format!("{:.2}×", drave / kafka),
                _ => "-".to_owned(),
            });
            table.add_row(
                [scenario.to_owned(), "ratio".to_owned()]
                    .into_iter()
                    .chain(ratios),
            );
        }
    }
    table
}
