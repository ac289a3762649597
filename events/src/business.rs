//! What the services beside the engine say to each other and to everybody: orders, payments, forecasts.
//!
//! CloudEvents as the engine's own, with one difference: their ids are not made of a shard and a number but of the
//! service that wrote them and its number there, `order-17`. Money is in minor units (cents) with its currency; no message
//! carries card data, only the token by which the provider knows a rider's means of payment.

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec::{DecodeError, EVENT_PREFIX, parse_event_type, parse_rfc3339, rfc3339};
use crate::ids::{RideId, RiderId, Time};
use crate::traceparent::TraceParent;

/// The version of every message here.
pub const BUSINESS_VERSION: u16 = 1;

/// An amount of money: an integer of the currency's minor unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Money {
    /// Cents, or whatever the currency's smallest unit is.
    pub minor: i64,
    /// ISO 4217.
    pub currency: String,
}

/// What a capture pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChargedFor {
    /// The ride.
    Fare,
    /// A cancel after a driver was assigned.
    CancelFee,
}

/// One line of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReceiptLine {
    /// `base`, `distance`, `time`, `surge`, `capped`, `cancel_fee`.
    pub what: String,
    /// In the receipt's currency; negative: taken off.
    pub minor: i64,
}

/// What a forecast says of one horizon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Horizon {
    /// From now to so many minutes ahead.
    pub minutes: u32,
    /// Expected number of requests.
    pub expected: f64,
    /// At least `confidence` of such counts are expected not to be below this.
    pub low: u32,
    /// And not above this.
    pub high: u32,
}

macro_rules! business {
    ($( $(#[$doc:meta])* $name:literal $variant:ident { $( $(#[$fdoc:meta])* $field:ident : $type:ty ),* $(,)? } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
            pub struct $variant { $( $(#[$fdoc])* pub $field : $type ),* }

            impl From<$variant> for Business {
                fn from(said: $variant) -> Business { Business::$variant(said) }
            }
        )*

        /// One message of a service.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Business { $( $(#[$doc])* $variant($variant), )* }

        impl Business {
            /// The type without prefix and version: `payment.captured`.
            pub fn name(&self) -> &'static str {
                match self { $( Business::$variant(_) => $name, )* }
            }

            /// Every name there is, in the order of the contract.
            pub const NAMES: &[&str] = &[$( $name, )*];

            /// JSON Schema of the data of the message called `name`.
            pub fn data_schema(name: &str) -> Option<Schema> {
                let generator = SchemaGenerator::default();
                match name {
                    $( $name => Some(generator.into_root_schema_for::<$variant>()), )*
                    _ => None,
                }
            }

            fn data(&self) -> serde_json::Result<Box<RawValue>> {
                match self { $( Business::$variant(said) => serde_json::value::to_raw_value(said), )* }
            }

            fn from_data(name: &str, data: &str) -> Option<Result<Business, serde_json::Error>> {
                match name {
                    $( $name => Some(serde_json::from_str::<$variant>(data).map(Business::$variant)), )*
                    _ => None,
                }
            }
        }
    };
}

business! {
    /// A ride was requested: its money is to be held.
    "order.authorisation_asked" AuthorisationAsked {
        /// The ride.
        ride: RideId,
        /// Who pays.
        rider: RiderId,
        /// The provider's token of the rider's means of payment.
        method: String,
        /// The most that will be charged.
        amount: Money,
    }
    /// The ride is over and costs this much; what is held beyond it is let go.
    "order.capture_asked" CaptureAsked {
        /// The ride.
        ride: RideId,
        /// At most what was authorised.
        amount: Money,
        /// For what.
        charged_for: ChargedFor,
    }
    /// Nothing is to be paid: what is held is let go.
    "order.void_asked" VoidAsked {
        /// The ride.
        ride: RideId,
    }
    /// What the rider paid, and for what.
    "order.receipt" Receipt {
        /// The ride.
        ride: RideId,
        /// Who paid.
        rider: RiderId,
        /// The sum of the lines.
        total: Money,
        /// For what.
        lines: Vec<ReceiptLine>,
    }
    /// The ride was driven and could not be charged.
    "order.left_unpaid" LeftUnpaid {
        /// The ride.
        ride: RideId,
        /// Who owes it.
        rider: RiderId,
        /// How much.
        amount: Money,
        /// Why.
        why: String,
    }
    /// The provider holds the money.
    "payment.authorised" Authorised {
        /// The ride.
        ride: RideId,
        /// The provider's name for it.
        authorisation: String,
        /// How much.
        amount: Money,
    }
    /// The provider does not.
    "payment.refused" Refused {
        /// The ride.
        ride: RideId,
        /// Why, in the provider's words.
        why: String,
    }
    /// The money is ours.
    "payment.captured" Captured {
        /// The ride.
        ride: RideId,
        /// How much.
        amount: Money,
    }
    /// Nothing is held for the ride.
    "payment.voided" Voided {
        /// The ride.
        ride: RideId,
    }
    /// Money was given back.
    "payment.refunded" Refunded {
        /// The ride.
        ride: RideId,
        /// How much.
        amount: Money,
    }
    /// The circuit breaker before the provider changed.
    "payment.provider_state" ProviderState {
        /// `closed` (all is well), `open` (nothing is sent), `half_open` (one call tries).
        state: String,
    }
    /// How many rides are expected to be asked for in a cell.
    "demand.forecast" DemandForecast {
        /// The H3 cell.
        region_id: String,
        /// When it was made, RFC 3339.
        timestamp: String,
        /// The next 15, 30 and 60 minutes.
        predicted_demand: Vec<Horizon>,
        /// The probability that each interval claims, 0 to 1.
        confidence: f64,
        /// Free drivers last seen in the cell.
        supply: u32,
    }
}

impl Business {
    /// What it is about: `ride/3-5-1042`, `cell/872830828ffffff`, `provider`.
    pub fn subject(&self) -> String {
        let ride = |ride: &RideId| format!("ride/{ride}");
        match self {
            Business::AuthorisationAsked(said) => ride(&said.ride),
            Business::CaptureAsked(said) => ride(&said.ride),
            Business::VoidAsked(said) => ride(&said.ride),
            Business::Receipt(said) => ride(&said.ride),
            Business::LeftUnpaid(said) => ride(&said.ride),
            Business::Authorised(said) => ride(&said.ride),
            Business::Refused(said) => ride(&said.ride),
            Business::Captured(said) => ride(&said.ride),
            Business::Voided(said) => ride(&said.ride),
            Business::Refunded(said) => ride(&said.ride),
            Business::ProviderState(_) => "provider".to_owned(),
            Business::DemandForecast(said) => format!("cell/{}", said.region_id),
        }
    }

    /// The topic it belongs to.
    pub fn topic(&self) -> &'static str {
        match self.name().split_once('.') {
            Some(("order", _)) => "order-events",
            Some(("payment", _)) => "payment-events",
            _ => "demand-forecasts",
        }
    }
}

/// One message with its place in its service's history.
#[derive(Clone, Debug, PartialEq)]
pub struct BusinessRecord {
    /// Unique among all: `order-17`.
    pub id: String,
    /// When it was said.
    pub time: Time,
    /// The trace it belongs to, if that is recorded. Nothing depends on it.
    pub traceparent: Option<TraceParent>,
    /// What was said.
    pub said: Business,
}

#[derive(Serialize)]
struct Out<'a> {
    specversion: &'static str,
    id: &'a str,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<TraceParent>,
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct In<'a> {
    id: String,
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
    #[serde(default, deserialize_with = "crate::traceparent::lenient")]
    traceparent: Option<TraceParent>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl BusinessRecord {
    /// The CloudEvents 1.0 type, `cabrank.payment.captured.v1`.
    pub fn cloud_type(&self) -> String {
        format!("{EVENT_PREFIX}{}.v{BUSINESS_VERSION}", self.said.name())
    }

    /// The record as CloudEvents 1.0 JSON (structured mode).
    pub fn to_json(&self) -> Bytes {
        let data = self.said.data().expect("plain structures become JSON");
        let service = self.id.rsplit_once('-').map_or("", |(service, _)| service);
        let out = Out {
            specversion: "1.0",
            id: &self.id,
            source: format!("/cabrank/services/{service}"),
            kind: self.cloud_type(),
            subject: self.said.subject(),
            time: rfc3339(self.time),
            datacontenttype: "application/json",
            traceparent: self.traceparent,
            data: &data,
        };
        Bytes::from(serde_json::to_vec(&out).expect("plain structures become JSON"))
    }

    /// Reads what [`BusinessRecord::to_json`] wrote; unknown fields pass, one version ahead passes, more is named.
    pub fn from_json(bytes: &[u8]) -> Result<BusinessRecord, DecodeError> {
        let malformed = |source| DecodeError::Malformed {
            what: "message",
            source,
        };
        let raw: In<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
        let (name, version) = parse_event_type(&raw.kind)?;
        if version > BUSINESS_VERSION + 1 {
            return Err(DecodeError::TooNew {
                what: "message",
                found: version,
                newest: BUSINESS_VERSION + 1,
            });
        }
        let said = Business::from_data(name, raw.data.get())
            .ok_or_else(|| DecodeError::UnknownType {
                what: "message",
                found: raw.kind.to_string(),
            })?
            .map_err(malformed)?;
        Ok(BusinessRecord {
            time: parse_rfc3339(&raw.time)?,
            traceparent: raw.traceparent,
            id: raw.id,
            said,
        })
    }
}
