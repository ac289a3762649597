//! Riders: one ride at a time, keys that make retries harmless, requests that are too old.

use super::language::{check, check_rule, check_with};
use crate::EngineConfig;
use crate::sabotage::Sabotage;

#[test]
fn one_ride_at_a_time() {
    check_rule(
        Sabotage::TwoRidesAtOnce,
        "
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        request R2 by ann        => ann not again: already riding; refused: already riding
        cancel R1 by ann         => R1 cancelled by rider; done; ann free
        request R2 by ann        => refused: already riding
        request R3 by ann        => ann busy with R3; open R3; ann knows of R3; done
    ",
    );
}

#[test]
fn a_retry_makes_no_second_ride_not_even_after_the_end() {
    check_rule(
        Sabotage::ForgetKeys,
        "
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        request R1 by ann        => already done
        cancel R1 by ann         => R1 cancelled by rider; done; ann free
        request R1 by ann        => already done
    ",
    );
}

#[test]
fn a_pickup_that_moved_over_a_border_makes_no_second_ride() {
    check_rule(
        Sabotage::ForgetKeys,
        "
        request R1 by ann at A   => ann busy with R1; open R1; ann knows of R1; done
        request R1 by ann at B   => refused: key reused
        request R1 by ann at A class xl => refused: key reused
        request R1 by ann at A   => already done
    ",
    );
}

#[test]
fn a_request_is_acknowledged_only_when_its_ride_is_open() {
    check_rule(
        Sabotage::AnswerPending,
        "
        apart
        request R1 by ann        => ann busy with R1
        request R1 by ann        =>
        read rides               => open R1
        request R1 by ann        =>
        read riders              => ann knows of R1; done
        request R1 by ann        => already done
    ",
    );
}

#[test]
fn a_request_the_place_refuses_is_never_acknowledged() {
    let config = EngineConfig {
        rides_max: 1,
        ..EngineConfig::default()
    };
    check_with(
        config,
        "
        apart
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        request R2 by bob        => bob busy with R2
        read rides               =>
        read riders              => ann knows of R1; done
        read riders              => bob without R2: shard full; refused: shard full
        request R2 by bob        => refused: shard full
        request R3 by bob        => bob busy with R3
    ",
    );
}

#[test]
fn a_rider_is_free_when_the_end_has_arrived() {
    check_rule(
        Sabotage::ForgetToFreeRider,
        "
        apart
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        cancel R1 by ann         => R1 cancelled by rider; done
        request R2 by ann        => ann not again: already riding; refused: already riding
        read riders              => ann knows of R1; done
        read riders              => ann free
        request R3 by ann        => ann busy with R3
    ",
    );
}

#[test]
fn a_cancel_by_key_reaches_the_ride_behind_its_opening() {
    check(
        "
        apart
        request R1 by ann        => ann busy with R1
        cancel-key R1 by ann     =>
        read rides               => open R1
        read rides               => R1 cancelled by rider; done
        read riders              => ann knows of R1; done
        read riders              => ann free
        cancel-key R1 by ann     => already done
    ",
    );
}

#[test]
fn a_cancel_does_not_hop_past_its_rides_opening() {
    check_rule(
        Sabotage::HopAlways,
        "
        apart
        request R1 by ann        => ann busy with R1
        together
        cancel-key R1 by ann     =>
        read rides               => open R1; ann knows of R1; done
        read rides               => R1 cancelled by rider; done; ann free
    ",
    );
}

#[test]
fn a_cancel_before_the_request_wins() {
    check_rule(
        Sabotage::ForgetKeys,
        "
        cancel-key R1 by ann     => ann cancelled key R1; done
        cancel-key R1 by ann     => already done
        request R1 by ann        => refused: cancelled before
        request R2 by ann        => ann busy with R2; open R2; ann knows of R2; done
    ",
    );
}

#[test]
fn a_cancel_by_key_after_the_end() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
        cancel-key R1 by ann     => refused: already started
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        cancel-key R1 by ann     => refused: ended
    ");
}

#[test]
fn nobody_sends_a_car_to_somebody_who_left() {
    check_rule(
        Sabotage::IgnoreAge,
        "
        request R1 by ann issued 61s => refused: too old
        request R2 by ann issued 59s => ann busy with R2; open R2; ann knows of R2; done
    ",
    );
}

#[test]
fn a_request_that_aged_on_its_way_is_refused_by_the_place() {
    check_rule(
        Sabotage::IgnoreAge,
        "
        apart
        request R1 by ann        => ann busy with R1
        sleep 61s
        cancel R9 by bob         => refused: unknown ride
        read rides               =>
        read riders              => ann without R1: too old; refused: too old
    ",
    );
}

#[test]
fn a_ride_that_aged_before_its_first_round_is_not_dispatched() {
    check_rule(
        Sabotage::IgnoreAge,
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        wait 61s                 => R1 within 3000m
        round R1>d7              => R1 unfulfilled: too old; ann free
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2                 => R2 in vain
        wait 61s                 => R2 within 3000m
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
    ",
    );
}

#[test]
fn keys_are_bounded_and_only_expired_ones_make_room() {
    let config = EngineConfig {
        keys_max: 2,
        ..EngineConfig::default()
    };
    check_with(
        config,
        "
        cancel-key R1 by ann     => ann cancelled key R1; done
        cancel-key R2 by ann     => ann cancelled key R2; done
        cancel-key R3 by ann     => refused: too many keys
        request R4 by ann        => refused: too many keys
        wait 9m                  =>
        request R4 by ann        => refused: too many keys
        wait 1m                  => ann forgotten
        request R5 by bob        => bob busy with R5; open R5; bob knows of R5; done
        wait 10m                 => R5 unfulfilled: deadline; bob free; bob forgotten
    ",
    );
}

#[test]
fn a_full_shard_refuses_and_takes_again() {
    let config = EngineConfig {
        rides_max: 1,
        ..EngineConfig::default()
    };
    check_with(config, "
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        request R2 by bob        => bob busy with R2; bob without R2: shard full; refused: shard full
        cancel R1 by ann         => R1 cancelled by rider; done; ann free
        request R2 by bob        => refused: shard full
        request R3 by bob        => bob busy with R3; open R3; bob knows of R3; done
    ");
}

#[test]
fn a_restart_forgets_no_key_and_no_ride() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        restart
        request R1 by ann        => already done
        accept R1 by d7 id x1    => assign R1#1 to d7; done
        restart
        accept R1 by d7 id x1    => done
        arrive R1 by d7          => d7 arrived for 300s; done
    ",
    );
}

#[test]
fn a_timer_does_not_fire_before_an_accept_that_came_in_time() {
    // The nodes are down from before the offer runs out until after it; the accept waits in the log while another
    // shard, already at the later time, sends a message here.
    check_rule(
        Sabotage::HopMovesTime,
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        wait 4s                  =>
        accept R1 by d7 unread
        wait 60s                 =>
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        read rides               => assign R1#1 to d7; done
    ",
    );
}

/// A gateway finds, the rider's shard decides once: zones that change between two attempts change no answer.
#[test]
fn a_retry_gets_its_first_answer_whatever_the_zones_say_meanwhile() {
    check(
        "
        request R1 by ann at A zone B   => ann busy with R1; open R1 at point B; ann knows of R1; done at point B
        request R1 by ann at A          => already done at point B
        request R1 by ann at A zone out => already done at point B
        request R1 by ann at B zone B   => refused: key reused
        cancel R1 by ann                => R1 cancelled by rider; done; ann free
        request R1 by ann at A zone A   => already done at point B
        request R2 by bob zone out      => bob not again: out of area; refused: out of area
        request R2 by bob               => refused: out of area
        request R3 by bob               => bob busy with R3; open R3; bob knows of R3; done
        request R3 by bob zone out      => already done
    ",
    );
}

#[test]
fn a_retry_that_comes_before_the_answer_changes_no_pickup() {
    check(
        "
        apart
        request R1 by ann at A zone B   => ann busy with R1
        request R1 by ann at A zone A   =>
        read rides                      => open R1 at point B
        request R1 by ann at A zone out =>
        read riders                     => ann knows of R1; done at point B
    ",
    );
}
