//! How records, headers and partition bounds lie in the store's values.
//!
//! Each value starts with a crc32c that also covers where the value belongs (table, shard, offset or key), so a page
//! that turns up in a wrong place is found out as surely as a flipped bit. Integers are little-endian in values and
//! big-endian in keys, where byte order must be numeric order.

use bytes::Bytes;

use crate::{Header, Record, Topic};

/// Why stored bytes are not believed: what they should have been.
pub(super) type Damage = String;

/// Keys of the log tables: shard, offset.
pub(super) type LogKey = [u8; 10];

pub(super) fn log_key(shard: u16, offset: u64) -> LogKey {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&shard.to_be_bytes());
    key[2..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(super) fn offset_of(key: &LogKey) -> u64 {
    let mut offset = [0; 8];
    offset.copy_from_slice(&key[2..]);
    u64::from_be_bytes(offset)
}

/// Keys of the state tables: shard, entity.
pub(super) fn state_key(shard: u16, entity: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + entity.len());
    key.extend_from_slice(&shard.to_be_bytes());
    key.extend_from_slice(entity);
    key
}

fn crc(place: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(place), body)
}

fn record_place(topic: Topic, shard: u16, offset: u64) -> [u8; 11] {
    let mut place = [0; 11];
    place[0] = topic as u8;
    place[1..].copy_from_slice(&log_key(shard, offset));
    place
}

/// Bytes a record's value takes: crc, time, key length, key, value.
pub(super) fn record_len(key: &[u8], value: &[u8]) -> usize {
    4 + 8 + 4 + key.len() + value.len()
}

/// Writes a record into `out`, which has `record_len` bytes.
pub(super) fn write_record(out: &mut [u8], topic: Topic, shard: u16, record: &Record) {
    let key_len = u32::try_from(record.key.len()).expect("bounded by RECORD_MAX_BYTES");
    let (head, body) = out.split_at_mut(4);
    body[..8].copy_from_slice(&record.time_ms.to_le_bytes());
    body[8..12].copy_from_slice(&key_len.to_le_bytes());
    body[12..12 + record.key.len()].copy_from_slice(&record.key);
    body[12 + record.key.len()..].copy_from_slice(&record.value);
    head.copy_from_slice(&crc(&record_place(topic, shard, record.offset), body).to_le_bytes());
}

pub(super) fn read_record(
    topic: Topic,
    shard: u16,
    offset: u64,
    stored: &[u8],
) -> Result<Record, Damage> {
    let damaged = || format!("{topic} shard {shard} offset {offset} does not match its checksum");
    let (head, body) = stored.split_at_checked(4).ok_or_else(damaged)?;
    if head != crc(&record_place(topic, shard, offset), body).to_le_bytes() {
        return Err(damaged());
    }
    let mut fields = Fields(body);
    let time_ms = fields.i64().ok_or_else(damaged)?;
    let key_len = fields.u32().ok_or_else(damaged)? as usize;
    if key_len > fields.0.len() {
        return Err(damaged());
    }
    // One allocation for both parts: they are handed on and dropped together.
    let payload = Bytes::copy_from_slice(fields.0);
    Ok(Record {
        offset,
        time_ms,
        key: payload.slice(..key_len),
        value: payload.slice(key_len..),
    })
}

/// Append time of a stored record, unchecked.
pub(super) fn record_time(stored: &[u8]) -> Option<i64> {
    Fields(stored.get(4..)?).i64()
}

/// Takes little-endian fields from the front; `None` when the bytes have run out.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn i64(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn u8(&mut self) -> Option<u8> {
        Some(*self.take(1)?.first()?)
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
}

/// What is known of a partition besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Oldest offset still there.
    pub first: u64,
    /// Offset of the next record.
    pub end: u64,
    /// Append time of the newest record.
    pub last_ms: i64,
    /// Bytes ever appended; differences between two moments tell the size of what lies between.
    pub bytes: u64,
    /// Bytes ever trimmed.
    pub trimmed: u64,
}

impl Default for Part {
    fn default() -> Self {
        Part {
            first: 0,
            end: 0,
            last_ms: i64::MIN,
            bytes: 0,
            trimmed: 0,
        }
    }
}

/// Keys of the partition table: topic, shard.
pub(super) fn part_key(topic: Topic, shard: u16) -> [u8; 3] {
    let shard = shard.to_be_bytes();
    [topic as u8, shard[0], shard[1]]
}

impl Part {
    pub(super) fn encode(&self, topic: Topic, shard: u16) -> [u8; 44] {
        let mut out = [0; 44];
        out[4..12].copy_from_slice(&self.first.to_le_bytes());
        out[12..20].copy_from_slice(&self.end.to_le_bytes());
        out[20..28].copy_from_slice(&self.last_ms.to_le_bytes());
        out[28..36].copy_from_slice(&self.bytes.to_le_bytes());
        out[36..44].copy_from_slice(&self.trimmed.to_le_bytes());
        let sum = crc(&part_key(topic, shard), &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn decode(topic: Topic, shard: u16, stored: &[u8]) -> Result<Part, Damage> {
        let damaged = || format!("the bounds of {topic} shard {shard} do not match their checksum");
        let (head, body) = stored.split_at_checked(4).ok_or_else(damaged)?;
        if head != crc(&part_key(topic, shard), body).to_le_bytes() {
            return Err(damaged());
        }
        let mut fields = Fields(body);
        (|| {
            Some(Part {
                first: fields.u64()?,
                end: fields.u64()?,
                last_ms: fields.i64()?,
                bytes: fields.u64()?,
                trimmed: fields.u64()?,
            })
        })()
        .ok_or_else(damaged)
    }
}

/// Counts and sums the states of a shard, so that a missing, doubled or outdated one is found although no order
/// links them. The sum is of checksums that cover shard, key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    pub count: u64,
    pub sum: u64,
}

impl Digest {
    pub(super) fn add(&mut self, stored: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(state_sum(stored));
    }
    pub(super) fn remove(&mut self, stored: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(state_sum(stored));
    }
}

fn state_sum(stored: &[u8]) -> u64 {
    let mut head = [0; 4];
    let len = stored.len().min(4);
    head[..len].copy_from_slice(&stored[..len]);
    u64::from(u32::from_le_bytes(head))
}

/// A state as stored: crc over its key and itself, then itself.
pub(super) fn encode_state(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + value.len());
    out.extend_from_slice(&crc(key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

pub(super) fn decode_state<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], Damage> {
    match stored.split_at_checked(4) {
        Some((head, value)) if head == crc(key, value).to_le_bytes() => Ok(value),
        _ => Err(format!(
            "the state of entity {} does not match its checksum",
            key.escape_ascii()
        )),
    }
}

/// A header with what the store adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredHeader {
    pub header: Header,
    pub states: Digest,
}

impl StoredHeader {
    pub(super) fn encode(&self, place: &[u8]) -> Vec<u8> {
        let header = &self.header;
        let mut out = Vec::with_capacity(64 + header.owner.len() + header.engine.len());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&header.next_input.to_le_bytes());
        out.extend_from_slice(&header.time_ms.to_le_bytes());
        out.extend_from_slice(&header.epoch.to_le_bytes());
        out.extend_from_slice(&self.states.count.to_le_bytes());
        out.extend_from_slice(&self.states.sum.to_le_bytes());
        let owner_len = u32::try_from(header.owner.len()).expect("checked when the owner came");
        out.extend_from_slice(&owner_len.to_le_bytes());
        out.extend_from_slice(header.owner.as_bytes());
        out.extend_from_slice(&header.engine);
        let sum = crc(place, &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn decode(place: &[u8], stored: &[u8]) -> Result<StoredHeader, Damage> {
        let damaged = || "a shard's header does not match its checksum".to_owned();
        let (head, body) = stored.split_at_checked(4).ok_or_else(damaged)?;
        if head != crc(place, body).to_le_bytes() {
            return Err(damaged());
        }
        let mut fields = Fields(body);
        (|| {
            let next_input = fields.u64()?;
            let time_ms = fields.i64()?;
            let epoch = fields.u64()?;
            let states = Digest {
                count: fields.u64()?,
                sum: fields.u64()?,
            };
            let owner_len = fields.u32()? as usize;
            let owner = String::from_utf8(fields.take(owner_len)?.to_vec()).ok()?;
            Some(StoredHeader {
                header: Header {
                    next_input,
                    time_ms,
                    epoch,
                    owner,
                    engine: Bytes::copy_from_slice(fields.0),
                },
                states,
            })
        })()
        .ok_or_else(damaged)
    }
}

/// No slot: the base is the empty one, or there is nothing to clear.
pub(super) const NO_SLOT: u8 = 2;

/// A copy of a shard's states at one moment: where it lies and which moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub slot: u8,
    /// `i64::MIN` until a commit has looked at it.
    pub taken_ms: i64,
    /// Per event topic: its end, and its bytes ever appended.
    pub ends: [(u64, u64); 2],
    pub states: Digest,
}

impl Base {
    /// A copy that begins now.
    pub(super) fn at(slot: u8, parts: &[Part; 2], now_ms: i64) -> Base {
        Base {
            slot,
            taken_ms: now_ms,
            ends: [
                (parts[0].end, parts[0].bytes),
                (parts[1].end, parts[1].bytes),
            ],
            states: Digest::default(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.slot);
        out.extend_from_slice(&self.taken_ms.to_le_bytes());
        for (end, bytes) in self.ends {
            out.extend_from_slice(&end.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        out.extend_from_slice(&self.states.count.to_le_bytes());
        out.extend_from_slice(&self.states.sum.to_le_bytes());
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Base> {
        Some(Base {
            slot: fields.u8()?,
            taken_ms: fields.i64()?,
            ends: [
                (fields.u64()?, fields.u64()?),
                (fields.u64()?, fields.u64()?),
            ],
            states: Digest {
                count: fields.u64()?,
                sum: fields.u64()?,
            },
        })
    }
}

/// How far a shard's past is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keep {
    pub base: Base,
    /// The copy in the making, or complete and waiting to become the base.
    pub next: Option<Base>,
    pub done: bool,
    /// Slot of the base before, while its entries are removed.
    pub clearing: u8,
    /// Key of the last state copied.
    pub cursor: Vec<u8>,
}

impl Default for Keep {
    /// The empty base: nothing was ever trimmed.
    fn default() -> Self {
        Keep {
            base: Base::at(NO_SLOT, &[Part::default(); 2], i64::MIN),
            next: None,
            done: false,
            clearing: NO_SLOT,
            cursor: Vec::new(),
        }
    }
}

impl Keep {
    pub(super) fn encode(&self, place: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 4];
        self.base.encode(&mut out);
        out.push(self.clearing);
        out.push(u8::from(self.done));
        out.push(u8::from(self.next.is_some()));
        if let Some(next) = &self.next {
            next.encode(&mut out);
        }
        out.extend_from_slice(&self.cursor);
        let sum = crc(place, &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn decode(place: &[u8], stored: &[u8]) -> Result<Keep, Damage> {
        let damaged = || "what is kept of a shard does not match its checksum".to_owned();
        let (head, body) = stored.split_at_checked(4).ok_or_else(damaged)?;
        if head != crc(place, body).to_le_bytes() {
            return Err(damaged());
        }
        let mut fields = Fields(body);
        (|| {
            let base = Base::decode(&mut fields)?;
            let clearing = fields.u8()?;
            let done = fields.u8()? == 1;
            let next = match fields.u8()? {
                0 => None,
                _ => Some(Base::decode(&mut fields)?),
            };
            Some(Keep {
                base,
                next,
                done,
                clearing,
                cursor: fields.0.to_vec(),
            })
        })()
        .ok_or_else(damaged)
    }
}

/// A number that stands by itself in the meta table.
pub(super) fn encode_number(name: &str, number: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[4..].copy_from_slice(&number.to_le_bytes());
    let sum = crc(name.as_bytes(), &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    out
}

pub(super) fn decode_number(name: &str, stored: &[u8]) -> Result<u64, Damage> {
    let damaged = || format!("the stored {name} does not match its checksum");
    let (head, body) = stored.split_at_checked(4).ok_or_else(damaged)?;
    if head != crc(name.as_bytes(), body).to_le_bytes() {
        return Err(damaged());
    }
    Fields(body).u64().ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            offset: 7,
            time_ms: -3,
            key: Bytes::from_static(b"rider-1"),
            value: Bytes::from_static(b"request"),
        }
    }

    fn stored(record: &Record) -> Vec<u8> {
        let mut out = vec![0; record_len(&record.key, &record.value)];
        write_record(&mut out, Topic::RideEvents, 2, record);
        out
    }

    #[test]
    fn a_record_is_believed_only_at_its_own_place() {
        let bytes = stored(&record());
        assert_eq!(read_record(Topic::RideEvents, 2, 7, &bytes), Ok(record()));
        assert!(read_record(Topic::PersonEvents, 2, 7, &bytes).is_err());
        assert!(read_record(Topic::RideEvents, 3, 7, &bytes).is_err());
        assert!(read_record(Topic::RideEvents, 2, 8, &bytes).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_record_is_found() {
        let bytes = stored(&record());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                read_record(Topic::RideEvents, 2, 7, &bad).is_err(),
                "bit {bit}"
            );
        }
        for len in 0..bytes.len() {
            assert!(read_record(Topic::RideEvents, 2, 7, &bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_header_and_bounds_come_back_as_they_went_in() {
        let stored = StoredHeader {
            header: Header {
                next_input: 9,
                time_ms: 1_000,
                epoch: 3,
                owner: "node-a".into(),
                engine: Bytes::from_static(b"\0\xffsequence"),
            },
            states: Digest { count: 2, sum: 77 },
        };
        let bytes = stored.encode(b"place");
        assert_eq!(StoredHeader::decode(b"place", &bytes), Ok(stored));
        assert!(StoredHeader::decode(b"other", &bytes).is_err());

        let part = Part {
            first: 1,
            end: 5,
            last_ms: 6,
            bytes: 7,
            trimmed: 3,
        };
        let bytes = part.encode(Topic::RideCommands, 1);
        assert_eq!(Part::decode(Topic::RideCommands, 1, &bytes), Ok(part));
        assert!(Part::decode(Topic::RideCommands, 2, &bytes).is_err());
    }
}
