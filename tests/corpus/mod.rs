//! Hostile bytes for the tests of decoders, of every crate: how they are drawn, and those that once did harm.
//!
//! What is drawn is the same in every run. An input that a decoder fell over lies in the folder of its decoder here, as
//! hexadecimal text with a comment that says what it is, and is tried again in every run.
#![allow(dead_code, reason = "each crate's tests use their part of the helpers")]

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// So many cases of a property, the same ones in every run.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x6472_6176_6500_0001),
        ..ProptestConfig::default()
    }
}

/// The inputs that once did harm to this decoder, with their names.
///
/// # Panics
/// When the folder or a file in it can't be read.
pub(crate) fn known(decoder: &str) -> Vec<(String, Vec<u8>)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = [here.join("tests/corpus"), here.join("../tests/corpus")];
    let folder = roots
        .iter()
        .map(|root| root.join(decoder))
        .find(|folder| folder.is_dir())
        .expect("a folder of the decoder");
    let files = fs::read_dir(folder).expect("a readable folder");
    let mut known: Vec<_> = files
        .map(|file| {
            let path = file.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("text");
            (path.display().to_string(), bytes_of(&text))
        })
        .collect();
    known.sort();
    assert!(!known.is_empty(), "no input for {decoder}");
    known
}

/// Pairs of hexadecimal digits; what follows a `#` is a comment.
fn bytes_of(text: &str) -> Vec<u8> {
    let code = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<u8> = code
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let (pairs, odd) = digits.as_chunks::<2>();
    assert!(odd.is_empty(), "half a byte");
    let byte = |pair: &[u8; 2]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("hexadecimal digits")
    };
    pairs.iter().map(byte).collect()
}

/// Noise in which lengths, counts, marks and limits of integers are frequent.
pub(crate) fn noise(length_max: usize) -> impl Strategy<Value = Vec<u8>> {
    let telling = prop::sample::select(vec![
        0, 1, 2, 3, 4, 16, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
    ]);
    let byte = prop_oneof![1 => any::<u8>(), 2 => telling];
    prop::collection::vec(byte, 0..=length_max)
}

/// One change to bytes that were right.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// Other bytes in their place.
    Put(prop::sample::Index, Vec<u8>),
    /// More bytes.
    Insert(prop::sample::Index, Vec<u8>),
    /// So many bytes fewer.
    Remove(prop::sample::Index, usize),
    /// The end is missing.
    Cut(prop::sample::Index),
}

/// One to four changes.
pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<prop::sample::Index>;
    let edit = prop_oneof![
        4 => (at(), noise(9)).prop_map(|(at, bytes)| Edit::Put(at, bytes)),
        2 => (at(), noise(9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => (at(), 1..9usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => at().prop_map(Edit::Cut),
    ];
    prop::collection::vec(edit, 1..=4)
}

/// The bytes after the changes.
pub(crate) fn edited(good: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for edit in edits {
        let length = bytes.len();
        let place = |at: &prop::sample::Index| at.index(length + 1);
        match edit {
            Edit::Put(at, new) => {
                let (from, to) = (place(at), length.min(place(at) + new.len()));
                bytes[from..to].copy_from_slice(&new[..to - from]);
            }
            Edit::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Remove(at, count) => {
                let at = place(at);
                bytes.drain(at..length.min(at + count));
            }
            Edit::Cut(at) => bytes.truncate(place(at)),
        }
    }
    bytes
}
