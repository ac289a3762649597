//! What the desk sets for the market: one entity of its own, of no concern to any ride.

use super::language::check;

#[test]
fn the_newest_settings_take_the_place_of_all_before_and_survive_a_restart() {
    check(
        r#"
        set {"policy":"rematch"}                  => market 1: {"policy":"rematch"}; done
        set {"policy":"rematch"}                  => already done
        set {"swaps":{"gain_min_ms":60000}}       => market 2: {"swaps":{"gain_min_ms":60000}}; done
        restart                                   =>
        set {"swaps":{"gain_min_ms":60000}}       => already done
        set {}                                    => market 3: {}; done
        set {}                                    => already done
    "#,
    );
}

#[test]
fn settings_that_are_none_change_nothing() {
    check(
        r#"
        set {}                                    => already done
        set {"policy":"psychic"}                  => refused: bad settings
        set {"pace":{"most_ms":600000}}           => refused: bad settings
        set ["rematch"]                           => refused: bad settings
        set {"policy":"greedy"}                   => market 1: {"policy":"greedy"}; done
    "#,
    );
}

#[test]
fn a_ride_goes_on_through_a_change_in_the_middle_of_it() {
    check(
        r#"
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        set {"policy":"rematch"} => market 1: {"policy":"rematch"}; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        set {"policy":"greedy"}  => market 2: {"policy":"greedy"}; done
        accept R1 by d7          => assign R1#1 to d7; done
    "#,
    );
}

#[test]
fn a_node_is_asked_to_leave_each_time_anew_and_its_rides_do_not_notice() {
    check(
        r#"
        online d7                => d7 online; done
        request R1 by ann        => ann busy with R1; open R1; ann knows of R1; done
        drain node-1 id x        => market 1: node-1 leaves; done
        round R1>d7              => R1#1 claims d7; d7 held for R1#1; offer R1#1 to d7 for 5s
        restart                  =>
        drain node-1 id x        => done
        drain node-1             => market 2: node-1 leaves; done
        set {"policy":"greedy"}  => market 3: {"policy":"greedy"}; done
        accept R1 by d7          => assign R1#1 to d7; done
    "#,
    );
}
