//! Suspensions and block lists: the hard conditions that the driver's entity checks again at the claim (PROTOCOL 5).

use super::language::{check, check_rule, check_with};
use crate::EngineConfig;
use crate::sabotage::Sabotage;

#[test]
fn who_is_suspended_does_not_work_until_reinstated() {
    check_rule(
        Sabotage::SuspendedOnline,
        "
        online d7                => d7 online; done
        suspend d7               => d7 suspended: complaint; d7 offline: suspended; done
        suspend d7 for theft     => already done
        online d7 session 2      => refused: suspended
        offline d7               => already done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; R1#1 denied d7: suspended
        reinstate d7             => d7 reinstated; done
        reinstate d7             => already done
        round R1>d7              => R1#2 claims d7; R1#2 denied d7: offline
        online d7 session 2      => d7 online; done
        round R1>d7              => R1#3 claims d7; d7 held for R1#3; offer R1#3 to d7 for 5s
    ",
    );
}

/// A claim is under way while the desk suspends: the index could not know, the driver's entity does.
#[test]
fn a_claim_finds_out_about_a_suspension() {
    check_rule(
        Sabotage::SuspendedGrants,
        "
        apart
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1
        read rides               => open R1
        round R1>d7              => R1#1 claims d7
        suspend d7               => d7 suspended: complaint; d7 offline: suspended; done
        read drivers             =>
        read rides               => R1#1 denied d7: suspended
    ",
    );
}

#[test]
fn who_is_suspended_before_the_pickup_loses_the_ride_and_after_it_brings_the_rider_home() {
    check("
        online d7                => d7 online; done
        online d8                => d8 online; done
        online d9                => d9 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        suspend d7               => d7 suspended: complaint; d7 leaving: suspended; done; R1#1 left by d7; d7 released from R1#1; d7 offline: suspended
        round R1>d8              => R1#2 claims d8; d8 held for R1#2; offer R1#2 to d8 for 5s
        accept R1 by d8          => assign R1#2 to d8; done
        arrive R1 by d8          => d8 arrived for 300s; done
        suspend d8               => d8 suspended: complaint; d8 leaving: suspended; done; R1 loses d8: left, 300s more; d8 released from R1#2; d8 offline: suspended
        round R1>d9              => R1#3 claims d9; d9 held for R1#3; offer R1#3 to d9 for 5s
        accept R1 by d9          => assign R1#3 to d9; done
        start R1 by d9           => R1 started; done
        suspend d9               => d9 suspended: complaint; d9 leaving: suspended; done
        online d9 session 2      => refused: suspended
        complete R1 by d9        => R1 completed: driver reported; done; d9 released from R1#3; d9 offline: suspended; ann free
    ");
}

#[test]
fn a_suspension_outlives_restarts_and_the_memory_of_the_session() {
    check_rule(
        Sabotage::ForgetMarks,
        "
        online d7                => d7 online; done
        suspend d7               => d7 suspended: complaint; d7 offline: suspended; done
        restart                  =>
        online d7 session 2      => refused: suspended
        wait 60m                 =>
        restart                  =>
        online d7 session 2      => refused: suspended
        reinstate d7             => d7 reinstated; done
        wait 1s                  => d7 forgotten
        online d7 session 1      => d7 online; done
    ",
    );
}

#[test]
fn somebody_never_seen_may_be_suspended_and_kept_apart() {
    check(
        "
        suspend d7               => d7 suspended: complaint; done
        block ann by d8          => d8 without ann; done
        wait 60m                 =>
        online d7                => refused: suspended
        unblock ann by d8        => d8 with ann; done
        unblock ann by d8        => d8 forgotten; already done
        reinstate d7             => d7 reinstated; done
        wait 1s                  => d7 forgotten
    ",
    );
}

#[test]
fn two_who_are_kept_apart_do_not_meet_again() {
    check_rule(
        Sabotage::IgnoreBlocks,
        "
        online d7                => d7 online; done
        block ann by d7          => d7 without ann; done
        block ann by d7          => already done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; R1#1 denied d7: blocked
        round R1>d7              =>
        unblock ann by d7        => d7 with ann; done
        round R1>d7              =>
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
        cancel R1 by ann         => R1 cancelled by rider; done; ann free
        cancel R2 by bob         => R2 cancelled by rider; done; d7 released from R2#1; bob free
        request R3 by ann        => ann busy with R3; open R3; ann knows of R3; done
        round R3>d7              => R3#1 claims d7; d7 held for R3#1; offer R3#1 to d7 for 5s
    ",
    );
}

#[test]
fn a_block_does_not_end_the_ride_under_way() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        block ann by d7          => d7 without ann; done
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
    ",
    );
}

/// Those who are kept apart count as asked, so a ride whom nobody may serve comes to its end.
#[test]
fn a_ride_that_as_many_refuse_as_it_may_ask_ends() {
    let config = EngineConfig {
        asked_max: 2,
        ..EngineConfig::default()
    };
    check_with(config, "
        online d7                => d7 online; done
        online d8                => d8 online; done
        block ann by d7          => d7 without ann; done
        block ann by d8          => d8 without ann; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; R1#1 denied d7: blocked
        round R1>d8              => R1#2 claims d8; R1#2 denied d8: blocked; R1 unfulfilled: everybody asked; ann free
    ");
}

#[test]
fn block_lists_and_marked_drivers_are_bounded() {
    let config = EngineConfig {
        blocks_max: 1,
        marked_drivers_max: 2,
        ..EngineConfig::default()
    };
    check_with(
        config,
        "
        block ann by d7          => d7 without ann; done
        block bob by d7          => refused: too many blocks
        suspend d7               => d7 suspended: complaint; done
        suspend d8               => d8 suspended: complaint; done
        suspend d9               => refused: too many marked
        block ann by d9          => refused: too many marked
        reinstate d8             => d8 reinstated; done
        block ann by d9          => d8 forgotten; d9 without ann; done
    ",
    );
}
