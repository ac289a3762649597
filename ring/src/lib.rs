//! Which shard owns this cell, and which shard is home to this person?
//!
//! Holds: the answer depends on nothing but the number of shards and the key's bytes, on every machine and in
//! every build; with one shard more, keys move to the new shard only (PROTOCOL 30). The log is keyed by these
//! answers, so changing one of them would orphan rides and people: `tests/golden.rs` pins hasher and encoding.
//!
//! Elsewhere: which cell holds a point (`geo`), which node runs a shard (the log's consumer group).

#![forbid(unsafe_code)]

pub mod table;

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use siphasher::sip::SipHasher13;

/// The most shards a ring, and so a city, can have; the log over Kafka has the same bound. A shard is a partition of the
/// log's topics, and a ring this large takes 1 MiB.
pub const SHARDS_MAX: u16 = 256;

/// Counts the changes of hasher, keys, encoding or points per shard. Any such change moves keys between old
/// shards, so it needs a migration of the log, not just a new number.
const SCHEME: u32 = 1;

/// Points of each shard on the circle. A shard's share of the circle scatters by 1/sqrt(points), here 6 %; more
/// points make shares more even and lookups slower (their binary search leaves the first cache).
const POINTS_PER_SHARD: u16 = 256;

/// How many shards a ring cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ring of {shards} shards is not possible: choose 1 to {SHARDS_MAX}")]
pub struct BadRing {
    /// The number that was asked for.
    pub shards: u16,
}

/// Which sort of person an id names. A driver and a rider of the same id are two people, with two homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A driver.
    Driver,
    /// A rider.
    Rider,
}

/// Consistent hashing of cells and people onto shards. Immutable.
#[derive(Debug, Clone)]
pub struct Ring {
    shards: u16,
    points: HashRing<Key<'static>, PinnedHash>,
}

impl Ring {
    /// The ring of `shards` shards, numbered from 0. Fails for none and for more than [`SHARDS_MAX`].
    pub fn new(shards: u16) -> Result<Ring, BadRing> {
        if shards == 0 || shards > SHARDS_MAX {
            return Err(BadRing { shards });
        }
        let mut points = HashRing::with_hasher(PinnedHash);
        points.batch_add(
            (0..shards)
                .flat_map(|shard| {
                    (0..POINTS_PER_SHARD).map(move |point| Key::Point { shard, point })
                })
                .collect(),
        );
        Ok(Ring { shards, points })
    }

    /// How many shards there are; they are numbered from 0.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Rings of one version agree on every key. Shards only grow, so the larger of two versions is the later.
    pub fn version(&self) -> u32 {
        SCHEME << 16 | u32::from(self.shards)
    }

    /// The shard that owns a cell, given by its H3 index.
    pub fn shard_of_cell(&self, cell: u64) -> u16 {
        self.shard_of(&Key::Cell(cell))
    }

    /// The shard that is home to a person.
    pub fn shard_of_person(&self, kind: Kind, id: &str) -> u16 {
        self.shard_of(&Key::Person(kind, id))
    }

    fn shard_of(&self, key: &Key<'_>) -> u16 {
        match self.points.get(key) {
            Some(Key::Point { shard, .. }) => *shard,
            _ => unreachable!("a ring has at least one shard, and only points are added to it"),
        }
    }
}

/// What is hashed. `Hash` is written by hand: std's encodings of text and numbers are nobody's promise.
#[derive(Debug, Clone, Copy)]
enum Key<'a> {
    /// One of a shard's places on the circle.
    Point {
        shard: u16,
        point: u16,
    },
    Cell(u64),
    Person(Kind, &'a str),
}

impl Hash for Key<'_> {
    /// One byte for the sort of key, then numbers big-endian or the id's UTF-8. Only `write` is used, which
    /// takes bytes as they are, and an id is last, so no two keys have the same bytes.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match *self {
            Key::Point { shard, point } => {
                let ([a, b], [c, d]) = (shard.to_be_bytes(), point.to_be_bytes());
                hasher.write(&[b'p', a, b, c, d]);
            }
            Key::Cell(cell) => {
                let mut bytes = [b'c'; 9];
                bytes[1..].copy_from_slice(&cell.to_be_bytes());
                hasher.write(&bytes);
            }
            Key::Person(kind, id) => {
                hasher.write(match kind {
                    Kind::Driver => b"d",
                    Kind::Rider => b"r",
                });
                hasher.write(id.as_bytes());
            }
        }
    }
}

/// SipHash-1-3 with the ring's own fixed keys. Published, and unlike std's default hasher promised to stay.
#[derive(Debug, Clone, Copy)]
struct PinnedHash;

impl BuildHasher for PinnedHash {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(
            u64::from_be_bytes(*b"cabrank "),
            u64::from_be_bytes(*b"ring one"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pins hasher and encoding apart from hashring's search. The numbers come from another implementation of
    /// SipHash-1-3. `tests/golden.rs` pins what follows from them.
    #[test]
    fn the_same_bytes_always_hash_to_the_same_number() {
        let check = |key: Key<'_>, bytes: &[u8], hash: u64| {
            let mut seen = Bytes(Vec::new());
            key.hash(&mut seen);
            assert_eq!(seen.0, bytes, "encoding of {key:?}");
            assert_eq!(PinnedHash.hash_one(key), hash, "hash of {key:?}");
        };
        check(
            Key::Point {
                shard: 0x0102,
                point: 0x0304,
            },
            b"p\x01\x02\x03\x04",
            0x992c_24ad_0da7_a4e2,
        );
        check(
            Key::Cell(0x0852_8308_3fff_ffff),
            b"c\x08\x52\x83\x08\x3f\xff\xff\xff",
            0x4e78_192d_7f5c_b0f3,
        );
        check(
            Key::Person(Kind::Driver, "d7"),
            b"dd7",
            0x96ed_224d_8b6a_6eaa,
        );
        check(
            Key::Person(Kind::Rider, "d7"),
            b"rd7",
            0x1f53_7e6f_1861_31e0,
        );
        check(
            Key::Person(Kind::Rider, "a-longer-id:0123@fleet"),
            b"ra-longer-id:0123@fleet",
            0x2b70_db0e_c9bd_7003,
        );
    }

    /// hashring breaks a tie of two points by whatever its binary search meets: there must be none.
    #[test]
    fn no_two_points_of_the_largest_ring_share_a_place() {
        let mut places: Vec<u64> = (0..SHARDS_MAX)
            .flat_map(|shard| (0..POINTS_PER_SHARD).map(move |point| Key::Point { shard, point }))
            .map(|key| PinnedHash.hash_one(key))
            .collect();
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all);
    }

    struct Bytes(Vec<u8>);

    impl Hasher for Bytes {
        fn write(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
        fn finish(&self) -> u64 {
            unreachable!("only the bytes are of interest")
        }
    }
}
