//! The guard in front of kafka-protocol's decoders.
//!
//! Those allocate by an array's count before they look at its elements, so a
//! few bytes can make the process abort. [`check`] walks a request by a table
//! of its fields first, and lets it pass only when every count, length and
//! tagged field is covered by bytes that are there. It allocates nothing.

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;

use super::api_versions::Api;
use super::wire::{Malformed, Reader};

/// A field of a request.
#[derive(Clone, Copy)]
struct Field {
    kind: Kind,
    /// The first version that has it.
    from: i16,
    /// The last version that has it.
    to: i16,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A scalar of so many bytes.
    Fixed(usize),
    /// A string that may be null, or that the decoder itself refuses when it is null.
    String,
    /// A string that may not be null in some versions, which the decoder does not know.
    Name,
    Bytes,
    /// An array of scalars or strings, which have no tagged fields of their own.
    Scalars(&'static Field),
    /// An array of structures.
    Array(&'static [Field]),
    /// A structure behind a byte that says whether it is there.
    Optional(&'static [Field]),
}

const fn of(kind: Kind) -> Field {
    Field {
        kind,
        from: 0,
        to: i16::MAX,
    }
}

const fn since(from: i16, field: Field) -> Field {
    Field { from, ..field }
}

const fn until(to: i16, field: Field) -> Field {
    Field { to, ..field }
}

const BOOL: Field = of(Kind::Fixed(1));
const I8: Field = of(Kind::Fixed(1));
const I16: Field = of(Kind::Fixed(2));
const I32: Field = of(Kind::Fixed(4));
const I64: Field = of(Kind::Fixed(8));
const UUID: Field = of(Kind::Fixed(16));
const STRING: Field = of(Kind::String);
const NAME: Field = of(Kind::Name);
const BYTES: Field = of(Kind::Bytes);
const STRINGS: Field = of(Kind::Scalars(&STRING));
const I32S: Field = of(Kind::Scalars(&I32));

const fn array(element: &'static [Field]) -> Field {
    of(Kind::Array(element))
}

/// The fields of each request in all its served versions. Produce and Fetch
/// have a codec of their own.
const TABLES: &[(ApiKey, &[Field])] = &[
    (
        ApiKey::ListOffsets,
        &[
            I32,
            since(2, I8),
            array(&[STRING, array(&[I32, since(4, I32), I64])]),
            since(10, I32),
        ],
    ),
    (
        ApiKey::Metadata,
        &[
            array(&[since(10, UUID), until(9, NAME), since(10, STRING)]),
            since(4, BOOL),
            since(8, until(10, BOOL)),
            since(8, BOOL),
        ],
    ),
    (
        ApiKey::OffsetCommit,
        &[
            STRING,
            I32,
            STRING,
            since(7, STRING),
            until(4, I64),
            array(&[STRING, array(&[I32, I64, since(6, I32), STRING])]),
        ],
    ),
    (
        ApiKey::OffsetFetch,
        &[
            until(7, STRING),
            until(7, array(&[STRING, I32S])),
            since(
                8,
                array(&[
                    STRING,
                    since(9, STRING),
                    since(9, I32),
                    array(&[STRING, I32S]),
                ]),
            ),
            since(7, BOOL),
        ],
    ),
    (
        ApiKey::FindCoordinator,
        &[until(3, STRING), since(1, I8), since(4, STRINGS)],
    ),
    (
        ApiKey::JoinGroup,
        &[
            STRING,
            I32,
            since(1, I32),
            STRING,
            since(5, STRING),
            STRING,
            array(&[STRING, BYTES]),
            since(8, STRING),
        ],
    ),
    (ApiKey::Heartbeat, &[STRING, I32, STRING, since(3, STRING)]),
    (
        ApiKey::LeaveGroup,
        &[
            STRING,
            until(2, STRING),
            since(3, array(&[STRING, STRING, since(5, STRING)])),
        ],
    ),
    (
        ApiKey::SyncGroup,
        &[
            STRING,
            I32,
            STRING,
            since(3, STRING),
            since(5, STRING),
            since(5, STRING),
            array(&[STRING, BYTES]),
        ],
    ),
    (ApiKey::DescribeGroups, &[STRINGS, since(3, BOOL)]),
    (ApiKey::ListGroups, &[since(4, STRINGS), since(5, STRINGS)]),
    (ApiKey::ApiVersions, &[since(3, STRING), since(3, STRING)]),
    (
        ApiKey::CreateTopics,
        &[
            array(&[
                STRING,
                I32,
                I16,
                array(&[I32, I32S]),
                array(&[STRING, STRING]),
            ]),
            I32,
            BOOL,
        ],
    ),
    (
        ApiKey::DeleteTopics,
        &[since(6, array(&[STRING, UUID])), until(5, STRINGS), I32],
    ),
    (
        ApiKey::DeleteRecords,
        &[array(&[STRING, array(&[I32, I64])]), I32],
    ),
    (
        ApiKey::OffsetDelete,
        &[STRING, array(&[STRING, array(&[I32])])],
    ),
    (ApiKey::DeleteGroups, &[STRINGS]),
    (
        ApiKey::InitProducerId,
        &[STRING, I32, since(3, I64), since(3, I16)],
    ),
    (
        ApiKey::OffsetForLeaderEpoch,
        &[since(3, I32), array(&[STRING, array(&[I32, I32, I32])])],
    ),
    (
        ApiKey::DescribeConfigs,
        &[array(&[I8, STRING, STRINGS]), BOOL, since(3, BOOL)],
    ),
    (
        ApiKey::AlterConfigs,
        &[array(&[I8, STRING, array(&[STRING, STRING])]), BOOL],
    ),
    (
        ApiKey::IncrementalAlterConfigs,
        &[array(&[I8, STRING, array(&[STRING, I8, STRING])]), BOOL],
    ),
    (
        ApiKey::CreatePartitions,
        &[array(&[STRING, I32, array(&[I32S])]), I32, BOOL],
    ),
    (ApiKey::DescribeLogDirs, &[array(&[STRING, I32S])]),
    (
        ApiKey::DescribeCluster,
        &[BOOL, since(1, I8), since(2, BOOL)],
    ),
    (
        ApiKey::DescribeTopicPartitions,
        &[array(&[STRING]), I32, of(Kind::Optional(&[STRING, I32]))],
    ),
];

fn fields(key: ApiKey) -> Option<&'static [Field]> {
    TABLES
        .iter()
        .find(|(of, _)| *of == key)
        .map(|(_, fields)| *fields)
}

/// Whether that request has a table here.
pub fn knows(key: ApiKey) -> bool {
    fields(key).is_some()
}

/// Lets a request's body pass when decoding it allocates no more than its bytes justify.
pub fn check(api: &Api, version: i16, body: &Bytes) -> Result<(), Malformed> {
    let fields = fields(api.key).ok_or(Malformed::NoSchema)?;
    let mut reader = Reader::new(body, api.is_flexible(version));
    walk(&mut reader, fields, version)
}

fn walk(reader: &mut Reader, fields: &[Field], version: i16) -> Result<(), Malformed> {
    for field in fields {
        if (field.from..=field.to).contains(&version) {
            step(reader, field, version)?;
        }
    }
    reader.skip_tags()
}

fn step(reader: &mut Reader, field: &Field, version: i16) -> Result<(), Malformed> {
    match field.kind {
        Kind::Fixed(bytes) => reader.skip(bytes),
        Kind::String => reader.skip_string(),
        Kind::Name => reader.string().map(drop),
        Kind::Bytes => reader.skip_bytes(),
        Kind::Scalars(element) => {
            for _ in 0..reader.nullable_count()?.unwrap_or(0) {
                step(reader, element, version)?;
            }
            Ok(())
        }
        Kind::Array(element) => {
            for _ in 0..reader.nullable_count()?.unwrap_or(0) {
                walk(reader, element, version)?;
            }
            Ok(())
        }
        Kind::Optional(fields) => match reader.i8()? {
            1 => walk(reader, fields, version),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
pub(crate) mod tests;
