//! Drivers: sessions, going home, classes, what a claim finds.

use super::language::{check, check_rule};
use crate::sabotage::Sabotage;

#[test]
fn sessions_are_ordered() {
    check_rule(
        Sabotage::OldSessions,
        "
        online d7 session 2      => d7 online; done
        online d7 session 2      => already done
        online d7 session 1      => refused: old session
        offline d7 session 1     => refused: old session
        online d7 session 3      => d7 online; done
        offline d7 session 2     => refused: old session
        silent d7 session 2      =>
        offline d7 session 3     => d7 offline: offline; done
        offline d7 session 3     => already done
        online d7 session 3      => refused: old session
        online d7 session 4      => d7 online; done
    ",
    );
}

#[test]
fn a_session_is_remembered_for_the_patience_and_then_forgotten() {
    check(
        "
        offline d7               => refused: not online
        online d7 session 5      => d7 online; done
        silent d7 session 5      => d7 offline: silent
        wait 9m                  =>
        online d7 session 5      => refused: old session
        wait 1m                  => d7 forgotten
        online d7 session 5      => d7 online; done
    ",
    );
}

#[test]
fn who_leaves_with_an_offer_open_goes_home() {
    check_rule(Sabotage::OfflineWhileHeld, "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        offline d7               => d7 leaving: offline; done; R1#1 left by d7; d7 released from R1#1; d7 offline: offline
        online d7 session 2      => d7 online; done
        round R1>d7              =>
    ");
}

#[test]
fn who_leaves_before_the_pickup_gives_the_ride_back() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        silent d7                => d7 leaving: silent; R1 loses d7: left, 300s more; d7 released from R1#1; d7 offline: silent
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; R2#1 denied d7: offline
    ");
}

#[test]
fn who_leaves_after_the_start_brings_the_rider_home_first() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
        offline d7               => d7 leaving: offline; done
        offline d7               => already done
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; d7 offline: offline; ann free
    ");
}

#[test]
fn who_comes_back_before_going_home_stays() {
    check("
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
        offline d7               => d7 leaving: offline; done
        online d7 session 2      => d7 online; done
        complete R1 by d7        => R1 completed: driver reported; done; d7 released from R1#1; ann free
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; d7 held for R2#1; offer R2#1 to d7 for 5s
    ");
}

#[test]
fn a_claim_finds_the_wrong_class_nobody_and_a_held_driver() {
    check_rule(
        Sabotage::AnyClass,
        "
        online d7 class xl       => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; R1#1 denied d7: wrong class
        request R2 by bob class xl => bob busy with R2; open R2; bob knows of R2; done
        round R2>d9              => R2#1 claims d9; R2#1 denied d9: offline
        round R2>d7              => R2#2 claims d7; d7 held for R2#2; offer R2#2 to d7 for 5s
        request R3 by cid class xl => cid busy with R3; open R3; cid knows of R3; done
        round R3>d7              => R3#1 claims d7; R3#1 denied d7: held
    ",
    );
}

#[test]
fn who_is_leaving_is_not_claimed() {
    check(
        "
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        accept R1 by d7          => assign R1#1 to d7; done
        start R1 by d7           => R1 started; done
        offline d7               => d7 leaving: offline; done
        request R2 by bob        => bob busy with R2; open R2; bob knows of R2; done
        round R2>d7              => R2#1 claims d7; R2#1 denied d7: leaving
    ",
    );
}

#[test]
fn the_same_id_gets_the_same_outcome() {
    check_rule(
        Sabotage::ForgetOutcomes,
        "
        online d7 id x1          => d7 online; done
        online d7 id x1          => done
        offline d7 id x2         => d7 offline: offline; done
        online d7 id x1          => done
        online d7 session 2      => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        decline R1 by d7 id x3   => R1#1 declined by d7; done; d7 released from R1#1
        decline R1 by d7 id x3   => done
    ",
    );
}
