//! What commands do to riders.

use cabrank_events::command::{CancelledBy, EntityId, OpenRide, Outcome, RefusedBecause};
use cabrank_events::event::{
    EndOfRide, KeyCancelled, RequestRefused, RideConfirmed, RideNotOpened, RiderBusy,
    RiderForgotten, RiderFree,
};
use cabrank_events::{
    Command, CommandId, CommandRecord, IdempotencyKey, Place, RideId, RiderId, ShardId, Time,
    VehicleClass, ZoneFinding, ZoneName,
};
use cabrank_geo::{Cell, Resolution};

use super::Shard;
use crate::rider::{Rider, Wish};
use crate::sabotage::Sabotage;

/// A request as it is compared with earlier ones of the same key.
struct Request<'a> {
    rider: &'a RiderId,
    key: &'a IdempotencyKey,
    pickup: Place,
    dropoff: Option<Place>,
    class: VehicleClass,
    issued_at: Time,
    /// What the gateway found: decides a first attempt only, and is no part of the fingerprint.
    zone: Option<&'a ZoneFinding>,
    airport: Option<&'a ZoneName>,
}

impl Request<'_> {
    /// FNV-1a, 64 bits, over the coordinates and the class: pinned, because states keep it.
    fn fingerprint(&self) -> u64 {
        let coordinates = |place: Place| [place.0.lat_e7(), place.0.lon_e7()];
        let mut words = coordinates(self.pickup).to_vec();
        words.push(i32::from(self.class.bit()));
        words.extend(self.dropoff.into_iter().flat_map(coordinates));
        words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    }
}

impl Shard {
    pub(super) fn handle_for_rider(&mut self, offset: Option<u64>, record: &CommandRecord) {
        match &record.command {
            Command::RequestRide {
                rider,
                key,
                pickup,
                dropoff,
                class,
                zone,
                airport,
            } => {
                let request = Request {
                    rider,
                    key,
                    pickup: *pickup,
                    dropoff: *dropoff,
                    class: *class,
                    issued_at: record.issued_at,
                    zone: zone.as_deref(),
                    airport: airport.as_ref(),
                };
                // Requests come from people, so from the log: they always have an offset and an id.
                if let (Some(offset), Some(id)) = (offset, &record.id) {
                    self.request_ride(offset, id, &request);
                }
            }
            Command::CancelByKey { rider, key } => {
                self.cancel_by_key(record.id.as_ref(), rider, key)
            }
            Command::RideOpened { rider, key, ride } => self.confirm(rider, key, *ride),
            Command::OpenRefused {
                rider,
                key,
                ride,
                why,
            } => {
                self.ride_not_opened(rider, key, *ride, *why);
            }
            Command::RideClosed {
                rider,
                key,
                ride,
                end,
            } => {
                self.ride_closed(rider, key, *ride, *end);
            }
            other => unreachable!("{other:?} is not for a rider"),
        }
    }

    fn rider_seq(&self, rider: &RiderId) -> u64 {
        self.riders
            .get(rider)
            .map_or_else(|| self.newest_number(), |known| known.seq)
            + 1
    }

    fn request_ride(&mut self, offset: u64, id: &CommandId, request: &Request<'_>) {
        let Request { rider, key, .. } = *request;
        let asked = EntityId::Rider(rider.clone());
        let fingerprint = request.fingerprint();
        let known = self
            .riders
            .get(rider)
            .and_then(|r| r.keys.get(key))
            .cloned();
        if let Some(known) = known
            && !self.broken(Sabotage::ForgetKeys)
        {
            let (outcome, ride) = match known.wish.clone() {
                Wish::Cancelled => (
                    Outcome::Refused {
                        why: RefusedBecause::CancelledBefore,
                    },
                    None,
                ),
                _ if known.fingerprint != fingerprint => (
                    Outcome::Refused {
                        why: RefusedBecause::KeyReused,
                    },
                    None,
                ),
                // The outcome comes when the place shard has answered; it resolves this retry, too.
                Wish::Pending { .. } if !self.broken(Sabotage::AnswerPending) => return,
                Wish::Pending { ride, .. } => (Outcome::Done, Some(ride)),
                Wish::Open { ride } | Wish::Ended { ride, .. } => {
                    (Outcome::AlreadyDone, Some(ride))
                }
                Wish::Refused { why } => (Outcome::Refused { why }, None),
            };
            let point = known.pickup_point.filter(|_| ride.is_some());
            self.answer_with(Some(id), &asked, outcome, ride, point);
            return;
        }
        if request.issued_at.plus_ms(self.config.request_patience_ms) < self.time
            && !self.broken(Sabotage::IgnoreAge)
        {
            self.answer(
                Some(id),
                &asked,
                Outcome::Refused {
                    why: RefusedBecause::TooOld,
                },
                None,
            );
            return;
        }
        if self.keys_are_full(rider) {
            let why = RefusedBecause::TooManyKeys;
            self.answer(Some(id), &asked, Outcome::Refused { why }, None);
            return;
        }
        let expires_at = self.time.plus_ms(self.config.key_memory_ms);
        let rider_seq = self.rider_seq(rider);
        let point = match request.zone {
            Some(ZoneFinding::At(point)) => Some(Box::new(point.clone())),
            Some(ZoneFinding::OutOfArea) | None => None,
        };
        let active = self.riders.get(rider).and_then(|r| r.active);
        let refused = match request.zone {
            _ if active.is_some() && !self.broken(Sabotage::TwoRidesAtOnce) => {
                Some(RefusedBecause::AlreadyRiding)
            }
            Some(ZoneFinding::OutOfArea) => Some(RefusedBecause::OutOfArea),
            Some(ZoneFinding::At(_)) | None => None,
        };
        if let Some(why) = refused {
            self.emit(RequestRefused {
                rider: rider.clone(),
                rider_seq,
                key: key.clone(),
                fingerprint,
                why,
                expires_at,
            });
            let active = active.filter(|_| why == RefusedBecause::AlreadyRiding);
            self.answer(Some(id), &asked, Outcome::Refused { why }, active);
            return;
        }
        let pickup = point.as_ref().map_or(request.pickup, |point| point.at);
        let ride = RideId {
            place: self.place_shard(pickup),
            minted_by: self.id,
            offset,
        };
        self.emit(RiderBusy {
            rider: rider.clone(),
            rider_seq,
            ride,
            key: key.clone(),
            fingerprint,
            command: id.clone(),
            expires_at,
            pickup_point: point.clone(),
        });
        self.send(Command::OpenRide(OpenRide {
            ride,
            rider: rider.clone(),
            key: key.clone(),
            pickup,
            dropoff: request.dropoff,
            class: request.class,
            issued_at: request.issued_at,
            pickup_point: point,
            airport: request.airport.cloned(),
        }));
    }

    fn keys_are_full(&self, rider: &RiderId) -> bool {
        self.riders
            .get(rider)
            .is_some_and(|r| r.keys_at(self.time) >= self.config.keys_max)
    }

    fn place_shard(&self, pickup: Place) -> ShardId {
        let resolution = Resolution::try_from(self.config.ownership_resolution)
            .expect("the configuration was checked");
        ShardId(
            self.ring
                .shard_of_cell(Cell::at(pickup.0, resolution).into()),
        )
    }

    fn cancel_by_key(&mut self, id: Option<&CommandId>, rider: &RiderId, key: &IdempotencyKey) {
        let asked = EntityId::Rider(rider.clone());
        let known = self
            .riders
            .get(rider)
            .and_then(|r| r.keys.get(key))
            .map(|k| k.wish.clone());
        match known {
            None if self.keys_are_full(rider) => {
                let why = RefusedBecause::TooManyKeys;
                self.answer(id, &asked, Outcome::Refused { why }, None);
            }
            None => {
                let rider_seq = self.rider_seq(rider);
                let expires_at = self.time.plus_ms(self.config.key_memory_ms);
                self.emit(KeyCancelled {
                    rider: rider.clone(),
                    rider_seq,
                    key: key.clone(),
                    expires_at,
                });
                self.answer(id, &asked, Outcome::Done, None);
            }
            // The place shard knows how far the ride is, and answers.
            Some(Wish::Pending { ride, .. } | Wish::Open { ride }) => self.send_for(
                id,
                Command::CancelRide {
                    ride,
                    by: CancelledBy::Rider,
                    rider: Some(rider.clone()),
                    reason: None,
                },
            ),
            Some(Wish::Ended {
                ride,
                end: EndOfRide::Cancelled,
            }) => {
                self.answer(id, &asked, Outcome::AlreadyDone, Some(ride));
            }
            Some(Wish::Ended {
                ride,
                end: EndOfRide::Completed | EndOfRide::Unfulfilled,
            }) => {
                let why = RefusedBecause::Ended;
                self.answer(id, &asked, Outcome::Refused { why }, Some(ride));
            }
            Some(Wish::Refused { .. } | Wish::Cancelled) => {
                self.answer(id, &asked, Outcome::AlreadyDone, None);
            }
        }
    }

    /// The command that waits for this wish's outcome, if the wish is pending with this ride.
    fn pending(&self, rider: &RiderId, key: &IdempotencyKey, ride: RideId) -> Option<CommandId> {
        match &self.riders.get(rider)?.keys.get(key)?.wish {
            Wish::Pending {
                ride: pending,
                command,
            } if *pending == ride => Some(command.clone()),
            Wish::Pending { .. }
            | Wish::Open { .. }
            | Wish::Ended { .. }
            | Wish::Refused { .. }
            | Wish::Cancelled => None,
        }
    }

    fn confirm(&mut self, rider: &RiderId, key: &IdempotencyKey, ride: RideId) {
        let Some(command) = self.pending(rider, key, ride) else {
            return;
        };
        let rider_seq = self.rider_seq(rider);
        self.emit(RideConfirmed {
            rider: rider.clone(),
            rider_seq,
            ride,
            key: key.clone(),
        });
        let asked = EntityId::Rider(rider.clone());
        let known = self.riders.get(rider).and_then(|r| r.keys.get(key));
        let point = known.and_then(|known| known.pickup_point.clone());
        self.answer_with(Some(&command), &asked, Outcome::Done, Some(ride), point);
    }

    fn ride_not_opened(
        &mut self,
        rider: &RiderId,
        key: &IdempotencyKey,
        ride: RideId,
        why: RefusedBecause,
    ) {
        let Some(command) = self.pending(rider, key, ride) else {
            return;
        };
        let rider_seq = self.rider_seq(rider);
        self.emit(RideNotOpened {
            rider: rider.clone(),
            rider_seq,
            ride,
            key: key.clone(),
            why,
        });
        let asked = EntityId::Rider(rider.clone());
        self.answer(Some(&command), &asked, Outcome::Refused { why }, None);
    }

    fn ride_closed(&mut self, rider: &RiderId, key: &IdempotencyKey, ride: RideId, end: EndOfRide) {
        // A close that overtook the opening brings the opening's news, too.
        self.confirm(rider, key, ride);
        if self.riders.get(rider).and_then(|r| r.active) != Some(ride) {
            return;
        }
        let rider_seq = self.rider_seq(rider);
        self.emit(RiderFree {
            rider: rider.clone(),
            rider_seq,
            ride,
            key: key.clone(),
            end,
        });
    }

    pub(super) fn rider_timer(&mut self, id: &RiderId) {
        let Some(Rider { active: None, .. }) = self.riders.get(id) else {
            return;
        };
        let rider_seq = self.rider_seq(id);
        self.remember_number(rider_seq);
        self.emit(RiderForgotten {
            rider: id.clone(),
            rider_seq,
        });
    }
}
