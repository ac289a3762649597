//! The sequences PROTOCOL gives after *Else*: each story breaks when its rule is taken out.

use cabrank_events::command::ClaimRefusal;
use cabrank_events::event::{ClaimDenied, RideRequested};
use cabrank_events::{
    DriverId, Event, IdempotencyKey, Place, RideId, RiderId, ShardId, Time, VehicleClass,
};
use cabrank_geo::Point;

use super::language::{check, check_rule};
use crate::ride::{Bounds, Ride};
use crate::sabotage::Sabotage;

#[test]
fn a_driver_is_held_once() {
    check_rule(Sabotage::GrantTwice, "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R1>d7 R2>d7        => R1#1 claims d7; R2#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s; R2#1 denied d7: held
        accept R1 by d7          => assign R1#1 to d7; done
    ");
}

/// Rule 1, the first *Else*, by its first line of defence: the claim does not hop past the release.
#[test]
fn a_claim_does_not_hop_past_a_release_in_the_log() {
    check_rule(
        Sabotage::HopAlways,
        "
        apart
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        wait 5s                  => R1#1 abandons d7; R1 within 3000m
        together
        round R1>d7              => R1#2 claims d7
        read drivers             => d7 held for R1#1
        read drivers             => d7 released from R1#1
        read drivers             => d7 held for R1#2; offer R1#2 to d7 for 5s
        read rides               =>
        read rides               =>
    ",
    );
}

/// Rule 1, the first *Else*, by its second: an old release does not free the new hold.
#[test]
fn an_old_release_does_not_free_a_new_hold() {
    check_rule(
        Sabotage::ReleaseAnyHold,
        "
        apart
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        read drivers             =>
        sleep 5s
        cancel R9 by bob         => R1#1 abandons d7; R1 within 3000m; refused: unknown ride
        read rides               =>
        online d7                => d7 online; done
        round R1>d7              => R1#2 claims d7
        read-newest drivers      => d7 held for R1#2
        read drivers             =>
        read rides               => offer R1#2 to d7 for 5s
    ",
    );
}

#[test]
fn attempts_are_never_reused() {
    check_rule(
        Sabotage::ReuseAttempt,
        "
        apart
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        wait 5s                  => R1#1 abandons d7; R1 within 3000m
        round R1>d7              => R1#2 claims d7
        read drivers             => d7 held for R1#1
        read rides               =>
        read drivers             => d7 released from R1#1
        read drivers             => d7 held for R1#2
        read rides               => offer R1#2 to d7 for 5s
    ",
    );
}

/// Rule 2: an abandoned claim sends its release, whatever became of the claim.
#[test]
fn an_unanswered_claim_is_abandoned_and_its_late_grant_released() {
    check_rule(
        Sabotage::NoClaimTimer,
        "
        apart
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        wait 5s                  => R1#1 abandons d7; R1 within 3000m
        read drivers             => d7 held for R1#1
        read drivers             => d7 released from R1#1
        read rides               =>
        read drivers             =>
    ",
    );
}

/// Rule 3: here the release has overtaken the claim, so only the answer to the grant frees the driver.
#[test]
fn a_grant_nobody_wants_is_released() {
    check_rule(
        Sabotage::KeepUnwantedGrant,
        "
        apart
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        cancel R1 by ann         => R1 cancelled by rider; done
        read-newest drivers      =>
        read drivers             => d7 held for R1#1
        read rides               =>
        read drivers             => d7 released from R1#1
    ",
    );
}

/// Rule 2: the grant of an abandoned claim is not taken for the grant of the next one.
#[test]
fn an_old_grant_is_not_the_new_ones() {
    check_rule(
        Sabotage::BelieveAnyGrant,
        "
        apart
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        wait 5s                  => R1#1 abandons d7; R1 within 3000m
        round R1>d8              => R1#2 claims d8
        read drivers             => d7 held for R1#1
        read rides               =>
        read drivers             => d7 released from R1#1
        read drivers             => d8 held for R1#2
        read rides               => offer R1#2 to d8 for 5s
    ",
    );
}

/// Rule 4: a stale "free" in the index does not bring the same car round after round.
#[test]
fn a_refused_driver_is_left_out_until_the_index_knows_more() {
    let (free, refused) = (DriverId::new("d7").unwrap(), 9);
    let mut ride = Ride::opened(&RideRequested {
        ride: RideId {
            place: ShardId(0),
            minted_by: ShardId(1),
            offset: 1,
        },
        ride_seq: 1,
        rider: RiderId::new("ann").unwrap(),
        key: IdempotencyKey::new("k").unwrap(),
        pickup: Place(Point::new(37.0, -122.0).unwrap()),
        dropoff: None,
        class: VehicleClass::Economy,
        issued_at: Time(0),
        deadline: Time(9),
        radius_m: 1,
        widen_at: Time(9),
        pickup_point: None,
        airport: None,
    });
    assert!(ride.may_ask(&free, refused));
    let denied = ClaimDenied {
        ride: ride.id,
        ride_seq: 2,
        driver: free.clone(),
        attempt: 1,
        why: ClaimRefusal::Held,
        driver_seq: refused,
    };
    let bounds = Bounds {
        asked_max: 8,
        outcomes_max: 8,
    };
    ride.apply(&Event::ClaimDenied(denied), &bounds);
    assert!(
        !ride.may_ask(&free, refused),
        "the index knows nothing newer"
    );
    assert!(
        ride.may_ask(&free, refused + 1),
        "the driver has changed since"
    );
}

#[test]
fn an_ended_ride_gives_its_driver_back() {
    check_rule(
        Sabotage::DropRelease,
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        cancel R1 by ann         => R1 cancelled by rider; done; d7 released from R1#1; ann free
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
    ",
    );
}

#[test]
fn after_a_cancel_nothing_assigns_the_ride() {
    check_rule(
        Sabotage::AssignAfterCancel,
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        cancel R1 by ann         => R1 cancelled by rider; done; d7 released from R1#1; ann free
        accept R1 by d7          => refused: ended
    ",
    );
}

/// Found by a story: the offer runs out at the very millisecond at which the search is to grow.
#[test]
fn two_timers_of_a_ride_may_fire_at_one_instant() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        wait 5s                  => R1#1 expired: no receipt; R1 within 3000m; d7 released from R1#1
    ",
    );
}
