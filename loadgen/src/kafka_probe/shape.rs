//! What does a ride write, and where? Record counts and sizes as a real city's, without their meaning.
//!
//! A request is taken by the rider's shard, opens a ride at the place's, holds a driver in a third and comes back to the
//! place's with the offer. What lies on one node happens in one transaction; what does not goes through the log.
//! Sizes are those of a load run's topics (`cabrank figures` prints them anew), keys left out.

/// A command's value, bytes.
pub(super) const COMMAND_BYTES: usize = 180;
/// An event's value and its header.
pub(super) const EVENT_BYTES: usize = 380;
/// A ride's, rider's or driver's state.
pub(super) const STATE_BYTES: usize = 390;
/// A shard's header: the engine's part and the log's.
pub(super) const HEADER_BYTES: usize = 450;
/// Reports of a driver between offer and end: received, accepted, arrived, started.
pub(super) const REPORTS: u32 = 4;

/// A step of a ride that one shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// The rider's shard takes the wish.
    Request = 1,
    /// The place's opens the ride and claims a driver.
    Open,
    /// The rider's hears of it.
    Opened,
    /// The driver's holds the driver.
    Hold,
    /// The place's makes the offer: what a request waits for.
    Offer,
    /// The driver reports to the place's.
    Report,
    /// The last report: the ride ends.
    End,
    /// The rider's is free again.
    Free,
    /// The driver's, too.
    Release,
}

const STAGES: [Stage; 9] = [
    Stage::Request,
    Stage::Open,
    Stage::Opened,
    Stage::Hold,
    Stage::Offer,
    Stage::Report,
    Stage::End,
    Stage::Free,
    Stage::Release,
];

/// A command of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub stage: Stage,
    /// When the first command of the chain should have left, ns.
    pub due: u64,
    pub rider: u16,
    pub place: u16,
    pub driver: u16,
    pub number: u64,
}

impl Command {
    /// Who carries it out.
    pub fn shard(&self) -> u16 {
        match self.stage {
            Stage::Request | Stage::Opened | Stage::Free => self.rider,
            Stage::Open | Stage::Offer | Stage::Report | Stage::End => self.place,
            Stage::Hold | Stage::Release => self.driver,
        }
    }

    /// What it makes others do.
    pub fn next(&self) -> impl Iterator<Item = Command> + use<> {
        let stages: &[Stage] = match self.stage {
            Stage::Request => &[Stage::Open],
            Stage::Open => &[Stage::Opened, Stage::Hold],
            Stage::Hold => &[Stage::Offer],
            Stage::End => &[Stage::Free, Stage::Release],
            Stage::Opened | Stage::Offer | Stage::Report | Stage::Free | Stage::Release => &[],
        };
        let command = *self;
        stages.iter().map(move |stage| Command {
            stage: *stage,
            ..command
        })
    }

    /// How many events it makes.
    pub fn events(&self) -> usize {
        match self.stage {
            Stage::Open | Stage::Opened | Stage::Report | Stage::End => 2,
            Stage::Request | Stage::Hold | Stage::Offer | Stage::Free | Stage::Release => 1,
        }
    }

    /// Are its events a ride's? Else a person's.
    pub fn is_of_ride(&self) -> bool {
        self.shard_is_place()
    }

    fn shard_is_place(&self) -> bool {
        matches!(
            self.stage,
            Stage::Open | Stage::Offer | Stage::Report | Stage::End
        )
    }

    /// The entity's key: the same for all its stages.
    pub fn key(&self) -> [u8; 20] {
        let mut key = [b'k'; 20];
        key[..8].copy_from_slice(&self.number.to_le_bytes());
        key[8..10].copy_from_slice(&self.shard().to_le_bytes());
        key[10] = u8::from(self.shard_is_place());
        key
    }

    /// A command's value, an event's and a state's begin alike; each is as long as it has to be.
    pub fn to_bytes(self) -> [u8; STATE_BYTES] {
        let mut bytes = [0; STATE_BYTES];
        // Something that does not compress to nothing.
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (self.number >> (n % 57)) as u8;
        }
        bytes[0] = self.stage as u8;
        bytes[1..9].copy_from_slice(&self.due.to_le_bytes());
        bytes[9..11].copy_from_slice(&self.rider.to_le_bytes());
        bytes[11..13].copy_from_slice(&self.place.to_le_bytes());
        bytes[13..15].copy_from_slice(&self.driver.to_le_bytes());
        bytes[15..23].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Reads what [`Command::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Command> {
        let two = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let eight = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let stage = *bytes.first()?;
        Some(Command {
            stage: *STAGES.iter().find(|known| **known as u8 == stage)?,
            due: eight(1)?,
            rider: two(9)?,
            place: two(11)?,
            driver: two(13)?,
            number: eight(15)?,
        })
    }
}

/// The byte of an event that says whether it is the one that was waited for: each command's last.
pub(super) const LAST_AT: usize = 23;

/// Which command of a client an event answers, and when that was due; `None` for events nobody waits for.
pub(super) fn answered(event: &[u8]) -> Option<(Stage, u64)> {
    let command = Command::from_bytes(event)?;
    if event.get(LAST_AT) != Some(&1) {
        return None;
    }
    match command.stage {
        Stage::Offer => Some((Stage::Request, command.due)),
        stage @ (Stage::Report | Stage::End) => Some((stage, command.due)),
        _ => None,
    }
}
