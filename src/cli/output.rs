//! Results as a table for people or as JSON for programs.

use std::io::Write;

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How results are printed.
#[derive(Args, Clone, Copy)]
pub(super) struct OutputArgs {
    /// How to print results
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "KIND")]
    pub(super) output: Output,
}

/// Kinds of output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Columns for people
    Table,
    /// JSON for programs
    Json,
}

/// A table without lines, columns two spaces apart.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 2));
    }
    table
}

/// Prints a list: JSON is an array of the values themselves.
pub(super) fn print_list<T: Serialize>(
    output: OutputArgs,
    values: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    match output.output {
        Output::Table => print_line(&table(header, values.iter().map(row)).trim_fmt()),
        Output::Json => print_json(values),
    }
}

/// Prints a value as JSON.
pub(super) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// Prints what a command did: a sentence for people, a value for programs.
pub(super) fn print_done(output: OutputArgs, sentence: &str, value: Value) -> anyhow::Result<()> {
    match output.output {
        Output::Table => print_line(sentence),
        Output::Json => print_json(&value),
    }
}

/// Prints a line to standard output; unlike `println!`, fails where nobody reads.
pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Numbers separated by commas.
pub(super) fn commas<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(T::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
