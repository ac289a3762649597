//! Drivers wait at an airport: who keeps the place, who loses it, who goes to the end. Who is next is told in `queues`.

use super::language::{check, check_rule, check_with};
use crate::EngineConfig;
use crate::queues::{AfterDecline, QueueRules};
use crate::sabotage::Sabotage;

/// d7 waits at SFO; a ride of ann's begins there and is offered to d7.
fn offered(rest: &str) -> String {
    format!(
        "
        online d7                    => d7 online; done
        wait 10s                     =>
        enter d7 SFO                 => d7 waits at SFO since 10s; done
        wait 10s                     =>
        request R1 by ann airport SFO => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7                  => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        {rest}"
    )
}

#[test]
fn the_place_is_given_once_and_outlives_a_new_session_and_a_restart() {
    check_rule(
        Sabotage::PlaceAnew,
        "
        enter d7 SFO             => refused: not online
        online d7                => d7 online; done
        enter d7 SFO             => d7 waits at SFO since 0s; done
        wait 10s                 =>
        enter d7 SFO             => already done
        online d7 session 2      => d7 online; done
        enter d7 SFO             => refused: old session
        restart                  =>
        enter d7 SFO session 2   => already done
        enter d7 OAK session 2   => d7 waits at OAK since 10s; done
        leave d7 SFO session 2   => already done
        leave d7 OAK session 2   => d7 left OAK; done
    ",
    );
}

#[test]
fn who_goes_home_waits_no_more() {
    check(
        "
        online d7                => d7 online; done
        enter d7 SFO             => d7 waits at SFO since 0s; done
        silent d7                => d7 offline: silent
        wait 10s                 =>
        online d7 session 2      => d7 online; done
        enter d7 SFO session 2   => d7 waits at SFO since 10s; done
    ",
    );
}

#[test]
fn a_taken_ride_ends_the_wait() {
    check_rule(
        Sabotage::KeepPlace,
        &offered("
        enter d7 SFO                 => refused: has ride
        accept R1 by d7              => assign R1#1 to d7; done
        start R1 by d7               => R1 started; done
        complete R1 by d7            => R1 completed: driver reported; done; d7 released from R1#1; ann free
        enter d7 SFO                 => d7 waits at SFO since 20s; done
    "),
    );
}

#[test]
fn who_turns_a_ride_of_the_airport_down_goes_to_the_end_or_stays_as_the_market_says() {
    check(&offered("
        decline R1 by d7             => R1#1 declined by d7; done; d7 released from R1#1, waits at SFO since 20s
    "));
    check(&offered("
        wait 5s                      => R1#1 expired: no receipt; R1 within 3000m; d7 released from R1#1, waits at SFO since 20s
    "));
    let config = EngineConfig {
        queues: QueueRules {
            after_decline: AfterDecline::Keep,
            ..QueueRules::default()
        },
        ..EngineConfig::default()
    };
    check_with(config, &offered("
        decline R1 by d7             => R1#1 declined by d7; done; d7 released from R1#1, waits at SFO since 10s
    "));
}

#[test]
fn a_rider_who_cancels_costs_the_driver_nothing() {
    check(&offered("
        cancel R1 by ann             => R1 cancelled by rider; done; d7 released from R1#1, waits at SFO since 10s; ann free
    "));
    check(&offered("
        accept R1 by d7              => assign R1#1 to d7; done
        cancel R1 by ann             => R1 cancelled by rider; done; d7 released from R1#1, waits at SFO since 10s; ann free
    "));
    // Who leaves while asked does not come back to a place.
    check(&offered(
        "
        leave d7 SFO                 => d7 left SFO; done
        cancel R1 by ann             => R1 cancelled by rider; done; d7 released from R1#1; ann free
    ",
    ));
}

#[test]
fn a_ride_from_elsewhere_may_be_declined_at_no_cost() {
    check("
        online d7                => d7 online; done
        enter d7 SFO             => d7 waits at SFO since 0s; done
        wait 10s                 =>
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        decline R1 by d7         => R1#1 declined by d7; done; d7 released from R1#1, waits at SFO since 0s
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
        accept R2 by d7          => assign R2#1 to d7; done
        give-back R2 by d7       => R2 loses d7: gave back, 300s more; done; d7 released from R2#1
    ");
}

#[test]
fn a_full_queue_takes_nobody_in_and_a_ride_of_an_airport_exchanges_no_car() {
    let config = EngineConfig {
        queues: QueueRules {
            drivers_max: 1,
            ..QueueRules::default()
        },
        ..EngineConfig::default()
    };
    check_with(
        config,
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        enter d7 SFO             => d7 waits at SFO since 0s; done
        enter d8 SFO             => refused: queue full
        enter d8 OAK             => d8 waits at OAK since 0s; done
        leave d7 SFO             => d7 left SFO; done
        enter d8 SFO             => d8 waits at SFO since 0s; done
        enter d7 OAK             => d7 waits at OAK since 0s; done
        request R1 by ann airport SFO => ann busy with R1; open R1; ann knows of R1; done
        round R1>d8              => R1#1 claims d8; d8 held for R1#1; offer R1#1 to d8 for 5s
        accept R1 by d8          => assign R1#1 to d8; done
        swap R1>d7               =>
    ",
    );
}
