//! Two rides exchange cars: PROTOCOL 6, rule by rule.
//!
//! `swap R1>d8 R2>d7`: R1 gets d8, and R2 then what R1 had. Apart, each answer waits in the log, so that what comes in
//! between can be told.

use super::language::{check, check_rule, check_rule_with, check_with};
use crate::EngineConfig;
use crate::config::SwapConsent;
use crate::sabotage::Sabotage;

#[test]
fn a_free_car_is_claimed_before_the_old_one_is_let_go() {
    check("
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        swap R1>d8               => R1#2 claims d8; d8 held for R1#2; R1#2 has d8 too; R1#2 goes from d7 to d8; d7 released from R1#1
        arrive R1#1 by d7        => refused: not yours
        arrive R1 by d8          => d8 arrived for 300s; done
        start R1 by d8           => R1 started; done
        complete R1 by d8        => R1 completed: driver reported; done; d8 released from R1#2; ann free
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
    ");
}

#[test]
fn a_ride_with_two_holds_gives_one_back() {
    check_rule(
        Sabotage::KeepBoth,
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        swap R1>d8               => R1#2 claims d8; d8 held for R1#2; R1#2 has d8 too; R1#2 goes from d7 to d8; d7 released from R1#1
    ",
    );
}

/// Two rides with drivers on the way, d7 for R1 and d8 for R2; then what the story tells.
fn two_rides(rest: &str) -> String {
    format!(
        "
        online d7                => d7 online; done
        online d8                => d8 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R1>d7 R2>d8        => R1#1 claims d7; R2#1 claims d8; d7 held for R1#1; d8 held for R2#1; offer R1#1 to d7 for 5s; offer R2#1 to d8 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        accept R2 by d8          => assign R2#1 to d8; done
        {rest}"
    )
}

/// The event names both drivers, what it gains for the rider and what the new driver leaves, and so do both phones' views.
#[test]
fn who_is_concerned_is_told_what_a_swap_gains() {
    check(&two_rides("
        online d9                => d9 online; done
        swap R1>d9:140 R2>d7:-20 => R1#2 claims d9; d9 held for R1#2; R1#2 has d9 too; R1#1 may lose d7; R2#2 claims d7 from R1#1; d7 released from R1#1; d7 held for R2#2; R1#1 lost d7; R2#2 has d7 too; R2#2 goes from d8 to d7, who leaves R1 and comes -20s sooner; R1#2 goes from d7 to d9, who comes 140s sooner; d8 released from R2#1
    "));
}

#[test]
fn two_rides_exchange_their_cars() {
    check(&two_rides("
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1; d8 released from R2#1; d8 held for R1#2; R2#1 lost d8; R1#2 has d8 too; R1#1 may lose d7; R2#2 claims d7 from R1#1; d7 released from R1#1; d7 held for R2#2; R1#1 lost d7; R2#2 has d7 too; R2#2 goes from d8 to d7; R1#2 goes from d7 to d8
        start R1#2 by d8         => R1 started; done
        start R2#2 by d7         => R2 started; done
        complete R1 by d8        => R1 completed: driver reported; done; d8 released from R1#2; ann free
        complete R2 by d7        => R2 completed: driver reported; done; d7 released from R2#2; bob free
    "));
}

/// What is left of a swap counts only for the rides it saw; a claim that is under way goes on.
#[test]
fn a_new_destination_ends_a_swap_and_loses_no_car() {
    check(&two_rides(
        "
        apart                    =>
        online d9                => d9 online; done
        swap R1>d9 R2>d7         => R1#2 claims d9
        lead R2 to B by bob      => R2 leads to B; done
        read drivers             => d9 held for R1#2
        read rides               => R1#2 has d9 too; R1#2 goes from d7 to d9
        read drivers             => d7 released from R1#1
        start R1#2 by d9         => R1 started; done
        start R2#1 by d8         => R2 started; done
    ",
    ));
}

/// A chain: the free car goes to R1, R1's to R2, and R3, which waits, is offered R2's.
#[test]
fn a_chain_starts_at_the_free_car_and_ends_with_a_ride_that_waits() {
    check(&two_rides("
        online d9                => d9 online; done
        request R3 by cid        => cid busy with R3; open R3; cid knows of R3; done
        swap R1>d9 R2>d7 R3>d8   => R1#2 claims d9; d9 held for R1#2; R1#2 has d9 too; R1#1 may lose d7; R2#2 claims d7 from R1#1; d7 released from R1#1; d7 held for R2#2; R1#1 lost d7; R2#2 has d7 too; R2#1 may lose d8; R3#1 claims d8 from R2#1; R1#2 goes from d7 to d9; d8 released from R2#1; d8 held for R3#1; R2#1 lost d8; offer R3#1 to d8 for 5s; R2#2 goes from d8 to d7
        accept R3 by d8          => assign R3#1 to d8; done
    "));
}

/// Cars are scarce: R3 is much nearer to d7 than R1 is, so R1 waits again, with its old place in the queue.
#[test]
fn a_far_ride_gives_its_car_to_one_that_would_get_none() {
    check(&two_rides("
        request R3 by cid        => cid busy with R3; open R3; cid knows of R3; done
        swap R3>d7 from R1       => R1#1 may lose d7; R3#1 claims d7 from R1#1; d7 released from R1#1; d7 held for R3#1; R1#1 lost d7; offer R3#1 to d7 for 5s; R1 loses d7: moved, 300s more
        accept R3 by d7          => assign R3#1 to d7; done
        online d9                => d9 online; done
        round R1>d9              => R1#2 claims d9; d9 held for R1#2; offer R1#2 to d9 for 5s
    "));
}

/// Who says meanwhile that the rider is in the car keeps it, and R3 goes on waiting.
#[test]
fn a_car_that_was_given_up_is_brought_back_if_its_rider_is_in_it() {
    check_rule(
        Sabotage::NeverBringBack,
        &two_rides(
            "
        request R3 by cid        => cid busy with R3; open R3; cid knows of R3; done
        apart                    =>
        swap R3>d7 from R1       => R1#1 may lose d7; R3#1 claims d7 from R1#1
        start R1 by d7           => started waits
        read drivers             => d7 released from R1#1; d7 held for R3#1
        read rides               => R1#1 lost d7; R3#1 abandons d7; R1#2 claims d7 from R3#1
        read drivers             => d7 released from R3#1; d7 held for R1#2
        read rides               => R1#2 has d7 too; R1#2 goes from d7 to d7; R1 started; done
        together                 =>
        round R3>d8              => R3#2 claims d8; R3#2 denied d8: held
    ",
        ),
    );
}

/// Anything about R1 has changed, or it is not R1's car: nothing begins.
#[test]
fn a_ride_gives_up_only_what_the_round_saw() {
    check(&two_rides(
        "
        request R3 by cid        => cid busy with R3; open R3; cid knows of R3; done
        swap R3>d8 from R1       =>
        swap R3>d9 from R1       =>
        arrive R1 by d7          => d7 arrived for 300s; done
        swap R3>d7 from R1       =>
    ",
    ));
}

/// The free car says no, so nobody has lost anything.
#[test]
fn a_chain_whose_free_car_is_taken_changes_nothing() {
    check(&two_rides(
        "
        online d9                => d9 online; done
        request R3 by cid        => cid busy with R3; open R3; cid knows of R3; done
        round R3>d9              => R3#1 claims d9; d9 held for R3#1; offer R3#1 to d9 for 5s
        swap R1>d9 R2>d7         => R1#2 claims d9; R1#2 denied d9: held
        arrive R1#1 by d7        => d7 arrived for 300s; done
        arrive R2#1 by d8        => d8 arrived for 300s; done
    ",
    ));
}

#[test]
fn a_swap_counts_only_for_rides_as_the_round_saw_them() {
    check(&two_rides("
        arrive R2 by d8          => d8 arrived for 300s; done
        swap R1>d8 R2>d7         =>
        swap R1>d7               =>
        give-back R2 by d8       => R2 loses d8: gave back, 300s more; done; d8 released from R2#1
        swap R2>d8               =>
        swap R2>d7 R1>d8         =>
        swap R1>d8 R2>d7         => R1#2 claims d8; d8 held for R1#2; R1#2 has d8 too; R1#1 may lose d7; R2#2 claims d7 from R1#1; d7 released from R1#1; d7 held for R2#2; R1#1 lost d7; offer R2#2 to d7 for 5s; R1#2 goes from d7 to d8
    "));
}

#[test]
fn a_ride_that_may_lose_no_driver_any_more_takes_no_part() {
    let config = EngineConfig {
        redispatch_max: 0,
        ..EngineConfig::default()
    };
    check_with(
        config,
        &two_rides(
            "
        swap R1>d8 R2>d7         =>
    ",
        ),
    );
}

/// d8 belongs to R2 by then under another name: the old one moves nothing.
#[test]
fn a_transfer_names_the_old_hold() {
    check_rule(
        Sabotage::TransferAnyHold,
        &apart(
            "
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        cancel R2 by bob         => R2 cancelled by rider; done
        request R3 by cid unread =>
        read-newest riders       => cid busy with R3
        read rides               => open R3
        read-newest drivers      => d8 released from R2#1
        round R3>d8              => R3#1 claims d8
        read-newest drivers      => d8 held for R3#1
        read drivers             =>
        read rides               => offer R3#1 to d8 for 5s
        read rides               => R1#2 denied d8: held
        arrive R1 by d7          => d7 arrived for 300s; done
    ",
        ),
    );
}

/// The same two rides, and from then on each shard alone: answers wait in the log until they are read.
fn apart(rest: &str) -> String {
    two_rides(&format!("apart => \n{rest}"))
}

#[test]
fn who_is_leaving_goes_to_no_other_ride() {
    check_rule(Sabotage::LeavingMoves, &apart("
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        offline d8               => d8 leaving: offline; done
        read drivers             =>
        read rides               =>
        read rides               => R1#2 denied d8: leaving; R2#1 keeps d8; R2 loses d8: left, 300s more
        read drivers             => d8 released from R2#1; d8 offline: offline
        arrive R1 by d7          => d7 arrived for 300s; done
    "));
}

#[test]
fn the_first_ride_of_a_circle_that_gets_nothing_waits_again_and_may_ask_the_same_driver() {
    check(&apart("
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        read drivers             => d8 released from R2#1; d8 held for R1#2
        read rides               => R2#1 lost d8; R1#2 has d8 too; R1#1 may lose d7; R2#2 claims d7 from R1#1
        offline d7               => d7 leaving: offline; done
        read drivers             =>
        read rides               =>
        read rides               => R2#2 denied d7: leaving; R2 loses d8: moved, 300s more; R1#1 keeps d7; R1#2 goes from d7 to d8
        read drivers             => d7 released from R1#1; d7 offline: offline
        round R2>d8              => R2#3 claims d8
        read drivers             =>
        read rides               => R2#3 denied d8: held
    "));
}

/// The rider is at the car already, but the car has just become another ride's: it comes back.
#[test]
fn whoever_is_in_the_car_stays_in_the_car() {
    for rule in [Sabotage::NeverBringBack, Sabotage::ReportInTransfer] {
        check_rule(rule, &apart("
            swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
            start R2 by d8           => started waits
            complete R2 by d8        => completed waits
            read drivers             => d8 released from R2#1; d8 held for R1#2
            read rides               => R2#1 lost d8; R1#2 abandons d8; R2#2 claims d8 from R1#2
            read drivers             => d8 released from R1#2; d8 held for R2#2
            read rides               => R2#2 has d8 too; R2#2 goes from d8 to d8; R2 started; done; R2 completed: driver reported; done
            arrive R1 by d7          => d7 arrived for 300s; done
        "));
    }
}

#[test]
fn the_transfer_that_brings_a_car_back_has_an_attempt_of_its_own() {
    check_rule(Sabotage::ReuseCounterAttempt, &apart("
        online d9                => d9 online; done
        swap R2>d9 R1>d8         => R2#2 claims d9
        read drivers             => d9 held for R2#2
        read rides               => R2#2 has d9 too; R2#1 may lose d8; R1#2 claims d8 from R2#1
        start R2#1 by d8         => started waits
        read drivers             => d8 released from R2#1; d8 held for R1#2
        read rides               => R2#1 lost d8; R1#2 abandons d8; R2#2 abandons d9; R2#3 claims d8 from R1#2
        read drivers             => d9 released from R2#2
        read drivers             => d8 released from R1#2; d8 held for R2#3
        read rides               => R2#3 has d8 too; R2#3 goes from d8 to d8; R2 started; done
        complete R2#3 by d8      => R2 completed: driver reported; done
    "));
}

#[test]
fn what_waited_applies_when_the_car_stays() {
    check_rule(Sabotage::ForgetParked, &apart("
        block ann by d8          => d8 without ann; done
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        arrive R2 by d8 id x1    => arrived waits
        arrive R2 by d8 id x1    =>
        complete R2 by d8        => refused: not started
        read drivers             =>
        read rides               => R1#2 denied d8: blocked; R2#1 keeps d8; d8 arrived for 300s; done
        arrive R2 by d8 id x1    => done
    "));
}

/// A driver who has said that the rider is in the car cannot give the ride back; what cannot wait any more is refused.
#[test]
fn only_so_many_reports_wait() {
    check(&apart("
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        arrive R2 by d8          => arrived waits
        start R2 by d8           => started waits
        give-back R2 by d8       => refused: already started
        start R2 by d8           => started waits
        complete R2 by d8        => completed waits
        complete R2 by d8        => refused: in transfer
        cancel R2 by bob         => R2 cancelled by rider; refused: ended; refused: ended; refused: ended; refused: ended; done
        read drivers             => d8 released from R2#1; d8 held for R1#2
        read drivers             =>
        read rides               => R1#2 has d8 too; R1#2 goes from d7 to d8
    "));
}

/// The car comes back only if its driver may: who fell out with the rider meanwhile is free, and the ride waits.
#[test]
fn a_car_that_may_not_come_back_is_held_by_nobody() {
    check_rule(Sabotage::KeepStrayHold, &apart("
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        start R2 by d8           => started waits
        read drivers             => d8 released from R2#1; d8 held for R1#2
        read rides               => R2#1 lost d8; R1#2 abandons d8; R2#2 claims d8 from R1#2
        block bob by d8          => d8 without bob; done
        read drivers             =>
        read rides               => R2#2 denied d8: blocked; R2 loses d8: moved, 300s more; refused: lapsed
        read drivers             => d8 released from R1#2
        round R2>d8              =>
    "));
}

#[test]
fn a_cancelled_ride_gives_both_holds_back() {
    check_rule(
        Sabotage::KeepIncoming,
        &apart(
            "
        online d9                => d9 online; done
        swap R1>d9               => R1#2 claims d9
        cancel R1 by ann         => R1 cancelled by rider; done
        read drivers             => d9 held for R1#2
        read drivers             => d7 released from R1#1
        read drivers             => d9 released from R1#2
        read rides               =>
        read drivers             =>
    ",
        ),
    );
}

#[test]
fn a_second_claim_without_an_answer_is_abandoned_and_the_ride_keeps_its_driver() {
    check(&apart(
        "
        online d9                => d9 online; done
        swap R1>d9               => R1#2 claims d9
        wait 5s                  => R1#2 abandons d9
        read drivers             => d9 held for R1#2
        read drivers             => d9 released from R1#2
        arrive R1#1 by d7        => d7 arrived for 300s; done
        read rides               =>
        read drivers             =>
    ",
    ));
}

/// Who arrives while a second car is only asked for is not sent away: the second one is.
#[test]
fn an_arrival_ends_the_search_for_a_better_car() {
    check(&apart(
        "
        online d9                => d9 online; done
        swap R1>d9               => R1#2 claims d9
        arrive R1 by d7          => R1#2 abandons d9; d7 arrived for 300s; done
        read drivers             => d9 held for R1#2
        read drivers             => d9 released from R1#2
    ",
    ));
}

/// The ride asked for a car goes on whatever becomes of the one that asked.
#[test]
fn a_car_whose_new_ride_has_ended_is_free() {
    check(&apart(
        "
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        cancel R1 by ann         => R1 cancelled by rider; done
        read drivers             => d8 released from R2#1; d8 held for R1#2
        read drivers             => d7 released from R1#1
        read drivers             => d8 released from R1#2
        read rides               => R2#1 lost d8; R2 loses d8: moved, 300s more
        read drivers             =>
    ",
    ));
}

#[test]
fn a_swap_survives_restarts() {
    check(&apart(
        "
        swap R1>d8 R2>d7         => R2#1 may lose d8; R1#2 claims d8 from R2#1
        start R2 by d8           => started waits
        restart                  =>
        read drivers             => d8 released from R2#1; d8 held for R1#2
        restart                  =>
        read rides               => R2#1 lost d8; R1#2 abandons d8; R2#2 claims d8 from R1#2
        restart                  =>
        read drivers             => d8 released from R1#2; d8 held for R2#2
        read rides               => R2#2 has d8 too; R2#2 goes from d8 to d8; R2 started; done
    ",
    ));
}

fn asking() -> EngineConfig {
    EngineConfig {
        swap_consent: SwapConsent::Ask,
        ..EngineConfig::default()
    }
}

/// The question is about the round's exchange; what begins is a later round's, which knows whether it still pays.
#[test]
fn a_driver_who_is_to_be_asked_keeps_the_ride_until_they_agree() {
    check_rule_with(asking(), Sabotage::NobodyAsked, &two_rides("
        online d9                => d9 online; done
        swap R1>d9:140           => ask d7 for R1 140s
        swap R1>d9:140           =>
        accept R1 by d7          => d7 on R1: agreed; done
        swap R1>d9:140           => R1#2 claims d9; d9 held for R1#2; R1#2 has d9 too; R1#2 goes from d7 to d9, who comes 140s sooner; d7 released from R1#1
    "));
}

#[test]
fn who_declines_or_does_not_answer_keeps_the_ride_and_is_not_asked_again() {
    check_with(
        asking(),
        &two_rides(
            "
        online d9                => d9 online; done
        swap R1>d9:140           => ask d7 for R1 140s
        decline R1 by d7         => d7 on R1: declined; done
        swap R1>d9:140           =>
        swap R2>d9:90            => ask d8 for R2 90s
        wait 15s                 => d8 on R2: no answer
        swap R2>d9:90            =>
        accept R2 by d8          => already done
        arrive R1 by d7          => d7 arrived for 300s; done
        arrive R2 by d8          => d8 arrived for 300s; done
    ",
        ),
    );
}

/// Both give up a ride, so both are asked, and one of them does not want to.
#[test]
fn a_circle_waits_for_everybody_in_it() {
    check_with(
        asking(),
        &two_rides(
            "
        swap R1>d8:30 R2>d7:40   => ask d7 for R1 70s; ask d8 for R2 70s
        accept R1 by d7          => d7 on R1: agreed; done
        swap R1>d8:30 R2>d7:40   =>
        decline R2 by d8         => d8 on R2: declined; done
        swap R1>d8:30 R2>d7:40   =>
    ",
        ),
    );
}

#[test]
fn an_agreement_grows_old_and_ends_with_the_hold() {
    check_with(
        asking(),
        &two_rides(
            "
        online d9                => d9 online; done
        swap R1>d9:140           => ask d7 for R1 140s
        accept R1 by d7          => d7 on R1: agreed; done
        wait 31s                 =>
        swap R1>d9:150           => ask d7 for R1 150s
        give-back R1 by d7       => R1 loses d7: gave back, 269s more; done; d7 released from R1#1
        accept R1#1 by d7        => R1 within 3000m; refused: lapsed
    ",
        ),
    );
}
