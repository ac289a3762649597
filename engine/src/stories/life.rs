//! A ride's life: every stage, each side's way out of it, every clock.

use super::language::{check, check_rule, check_rule_with, check_with};
use crate::EngineConfig;
use crate::sabotage::Sabotage;

#[test]
fn a_ride_from_request_to_end() {
    check("
        online d7                => d7 online; done
        request R1 by ann at A   => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        receive R1 by d7         => R1#1 shown for 15s; done
        accept R1 by d7          => assign R1#1 to d7; done
        arrive R1 by d7          => d7 arrived for 300s; done
        start R1 by d7           => R1 started; done
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        request R2 by ann at B   => ann busy with R2; open R2; ann knows of R2; done
    ");
}

#[test]
fn said_twice_is_done_once() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        receive R1 by d7         => R1#1 shown for 15s; done
        receive R1 by d7         => already done
        wait 14s                 =>
        accept R1 by d7          => assign R1#1 to d7; done
        accept R1 by d7          => already done
        receive R1 by d7         => already done
        arrive R1 by d7          => d7 arrived for 300s; done
        arrive R1 by d7          => already done
        accept R1 by d7          => already done
        start R1 by d7           => R1 started; done
        start R1 by d7           => already done
        arrive R1 by d7          => already done
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        complete R1 by d7        => already done
        accept R1 by d7          => already done
    ");
}

#[test]
fn what_comes_too_early_is_refused() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        accept R1#1 by d7        => refused: not yours
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        arrive R1 by d7          => refused: not accepted
        start R1 by d7           => refused: not accepted
        complete R1 by d7        => refused: not accepted
        accept R1 by d7          => assign R1#1 to d7; done
        decline R1 by d7         => refused: already accepted
        complete R1 by d7        => refused: not started
        start R1 by d7           => R1 started; done
        give-back R1 by d7       => refused: already started
        decline R1 by d7         => refused: already accepted
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        give-back R1 by d7       => refused: ended
        decline R1 by d7         => refused: ended
    ");
}

#[test]
fn strangers_and_unknown_rides_are_refused() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d8          => refused: not yours
        accept R1#9 by d7        => refused: lapsed
        cancel R1 by bob         => refused: not yours
        accept R9 by d7          => refused: unknown ride
        cancel R9 by ann         => refused: unknown ride
        accept R1 by d7          => assign R1#1 to d7; done
    ",
    );
}

#[test]
fn the_clock_of_the_answer_starts_when_the_phone_shows_the_offer() {
    check_rule(
        Sabotage::NoHandshake,
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        wait 4s                  =>
        receive R1 by d7         => R1#1 shown for 15s; done
        wait 14s                 =>
        accept R1 by d7          => assign R1#1 to d7; done
    ",
    );
}

#[test]
fn an_offer_nobody_sees_runs_out_and_one_nobody_answers_too() {
    check(
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        wait 5s                  => R1#1 expired: no receipt; R1 within 3000m; d7 released from R1#1
        accept R1#1 by d7        => refused: lapsed
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        receive R1 by d8         => R1#2 shown for 15s; done
        wait 15s                 => R1#2 expired: no answer; R1 within 4000m; d8 released from R1#2
        accept R1#2 by d8        => refused: lapsed
    ",
    );
}

#[test]
fn who_declined_is_never_asked_again() {
    check_rule(
        Sabotage::AskAgain,
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        decline R1 by d7         => R1#1 declined by d7; done; d7 released from R1#1
        round R1>d7              =>
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        accept R1#1 by d7        => refused: lapsed
        accept R1#2 by d8        => assign R1#2 to d8; done
    ",
    );
}

#[test]
fn a_rider_cancels_in_every_stage_before_the_start() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        cancel R1 by ann         => R1 cancelled by rider; done; ann free
        cancel R1 by ann         => already done
        request R2 by ann        => ann busy with R2; open R2; ann knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
        cancel R2 by ann         => R2 cancelled by rider; done; d7 released from R2#1; ann free
        accept R2 by d7          => refused: ended
        request R3 by ann        => ann busy with R3; open R3; ann knows of R3; done
        round R3>d7              => R3#1 claims d7; d7 held for R3#1; offer R3#1 to d7 for 5s
        accept R3 by d7          => assign R3#1 to d7; done
        cancel R3 by ann         => R3 cancelled by rider; done; d7 released from R3#1; ann free
        arrive R3 by d7          => refused: ended
        request R4 by ann        => ann busy with R4; open R4; ann knows of R4; done
        round R4>d7              => R4#1 claims d7; d7 held for R4#1; offer R4#1 to d7 for 5s
        accept R4 by d7          => assign R4#1 to d7; done
        arrive R4 by d7          => d7 arrived for 300s; done
        cancel R4 by ops for unpaid => R4 cancelled by ops: unpaid; done; d7 released from R4#1; ann free
        request R5 by ann        => ann busy with R5; open R5; ann knows of R5; done
        round R5>d7              => R5#1 claims d7; d7 held for R5#1; offer R5#1 to d7 for 5s
        accept R5 by d7          => assign R5#1 to d7; done
        start R5 by d7           => R5 started; done
        cancel R5 by ann         => refused: already started
        cancel R5 by ops         => refused: already started
        complete R5 by d7        => R5 completed: driver reported; done; d7 released from R5#1; ann free
        cancel R5 by ann         => refused: ended
    ");
}

#[test]
fn a_cancel_overtakes_the_answer_to_a_claim() {
    check(
        "
        apart
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        read riders              => ann knows of R1; done
        round R1>d7              => R1#1 claims d7
        cancel R1 by ann         => R1 cancelled by rider; done
        read drivers             => d7 held for R1#1
        read rides               =>
        read drivers             => d7 released from R1#1
        read riders              => ann free
        read drivers             =>
    ",
    );
}

#[test]
fn a_driver_gives_back_and_the_ride_keeps_its_place() {
    check(
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        wait 2s                  =>
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        arrive R1 by d7          => d7 arrived for 300s; done
        wait 4m                  => R2 within 3000m
        give-back R1 by d7       => R1 loses d7: gave back, 180s more; done; d7 released from R1#1
        round R1>d7              =>
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        accept R1 by d8          => assign R1#2 to d8; done
    ",
    );
}

#[test]
fn a_ride_that_loses_its_driver_too_often_ends() {
    let config = EngineConfig {
        redispatch_max: 1,
        ..EngineConfig::default()
    };
    check_with(config, "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        give-back R1 by d7       => R1 loses d7: gave back, 300s more; done; d7 released from R1#1
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        accept R1 by d8          => assign R1#2 to d8; done
        give-back R1 by d8       => R1 loses d8: gave back, 300s more; R1 unfulfilled: redispatch limit; done; d8 released from R1#2; ann free
    ");
}

#[test]
fn a_driver_who_never_arrives_is_lost() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        wait 29m                 =>
        wait 1m                  => R1 loses d7: never arrived, 180s more; R1 within 3000m; d7 released from R1#1
    ");
}

#[test]
fn a_rider_who_does_not_come_is_a_no_show() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        arrive R1 by d7          => d7 arrived for 300s; done
        wait 5m                  => R1 cancelled by no show; d7 released from R1#1; ann free
        start R1 by d7           => refused: ended
    ",
    );
}

#[test]
fn a_ride_nobody_ends_is_ended() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
        wait 239m                =>
        wait 1m                  => R1 completed: longest ride; d7 released from R1#1; ann free; ann forgotten
    ");
}

#[test]
fn the_search_grows_by_steps_to_its_bound_and_ends_at_the_deadline() {
    let config = EngineConfig {
        radius_step_m: 2_000,
        ..EngineConfig::default()
    };
    check_rule_with(
        config,
        Sabotage::WidenForEver,
        "
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1                 => R1 in vain
        round R1                 =>
        wait 5s                  => R1 within 4000m
        wait 5s                  => R1 within 5000m
        wait 60s                 =>
        wait 229s                =>
        wait 1s                  => R1 unfulfilled: deadline; ann free
        wait 2m                  =>
        cancel R1 by ann         => refused: unknown ride
    ",
    );
}

#[test]
fn the_deadline_ends_a_claim_and_an_offer_but_not_an_assigned_ride() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1                 => R1 in vain
        wait 298s                => R1 within 3000m
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        wait 2s                  => R1 unfulfilled: deadline; d7 released from R1#1; ann free
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
        accept R2 by d7          => assign R2#1 to d7; done
        wait 6m                  => ann forgotten
    ",
    );
}

#[test]
fn a_ride_asks_a_bounded_number_of_drivers() {
    let config = EngineConfig {
        asked_max: 2,
        ..EngineConfig::default()
    };
    check_with(config, "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        decline R1 by d7         => R1#1 declined by d7; done; d7 released from R1#1
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        decline R1 by d8         => R1#2 declined by d8; R1 unfulfilled: everybody asked; done; d8 released from R1#2; ann free
    ");
}

#[test]
fn a_pair_counts_only_for_the_version_the_round_saw() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1                 => R1 in vain
        stale-round R1>d7        =>
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        round R1>d7              =>
    ",
    );
}

#[test]
fn a_ride_leads_elsewhere_from_its_request_to_its_end() {
    for rule in [Sabotage::ObeyStrangers, Sabotage::LeadTheEnded] {
        check_rule(
            rule,
            "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        lead R1 to B by bob      => refused: not yours
        lead R1 to B by ann      => R1 leads to B; done
        lead R1 to B by ann      => already done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        lead R1 to A by ops      => R1 leads to A; done
        receive R1 by d7         => R1#1 shown for 15s; done
        accept R1 by d7          => assign R1#1 to d7; done
        lead R1 to B by ann id x => R1 leads to B; done
        arrive R1 by d7          => d7 arrived for 300s; done
        lead R1 to A by ann      => R1 leads to A; done
        lead R1 to B by ann id x => done
        start R1 by d7           => R1 started; done
        restart                  =>
        lead R1 to A by ann      => already done
        lead R1 to B by ann      => R1 leads to B; done
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        lead R1 to A by ann      => refused: ended
        lead R9 to A by ann      => refused: unknown ride
    ",
        );
    }
}

/// The round saw another destination, and what it costs to go there.
#[test]
fn a_round_that_saw_the_old_destination_gives_no_car() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        lead R1 to B by ann      => R1 leads to B; done
        stale-round R1>d7        =>
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
    ",
    );
}
