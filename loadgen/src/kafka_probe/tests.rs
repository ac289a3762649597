use std::collections::BTreeMap;

use super::shape::answered;
use super::*;

fn plan() -> ProbePlan {
    ProbePlan {
        brokers: "127.0.0.1:1".into(),
        prefix: "p-".into(),
        shards: 4,
        nodes: 1,
        rides_per_second: 10.0,
        whole_rides: true,
        warmup_s: 0.0,
        seconds: 1.0,
        seed: 1,
    }
}

fn request() -> Command {
    Command {
        stage: Stage::Request,
        due: 17,
        rider: 1,
        place: 2,
        driver: 3,
        number: 0x1234_5678_9abc_def0,
    }
}

#[test]
fn a_command_comes_back_as_it_was_written() {
    let mut todo = vec![
        request(),
        Command {
            stage: Stage::End,
            ..request()
        },
    ];
    let mut seen = 0;
    while let Some(command) = todo.pop() {
        let bytes = command.to_bytes();
        assert_eq!(Command::from_bytes(&bytes[..COMMAND_BYTES]), Some(command));
        todo.extend(command.next());
        seen += 1;
    }
    assert_eq!(seen, 8, "five steps up to the offer, three at the end");
    assert_eq!(Command::from_bytes(&[0; 5]), None);
    assert_eq!(Command::from_bytes(&[77; COMMAND_BYTES]), None);
}

#[test]
fn a_request_is_answered_by_the_last_event_of_its_offer_and_by_nothing_else() {
    let mut todo = vec![request()];
    let mut answers = BTreeMap::new();
    while let Some(command) = todo.pop() {
        for n in 1..=command.events() {
            let mut event = command.to_bytes();
            event[shape::LAST_AT] = u8::from(n == command.events());
            if let Some(answer) = answered(&event) {
                answers.insert((command.stage as u8, n), answer);
            }
        }
        todo.extend(command.next());
    }
    let offer = (Stage::Offer as u8, 1);
    assert_eq!(answers, BTreeMap::from([(offer, (Stage::Request, 17))]));
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_refused_with_its_remedy() {
    assert!(plan().check().is_ok());
    let bad = [
        ProbePlan {
            shards: 0,
            ..plan()
        },
        ProbePlan { nodes: 5, ..plan() },
        ProbePlan {
            rides_per_second: 1e9,
            ..plan()
        },
        ProbePlan {
            seconds: 700.0,
            ..plan()
        },
        ProbePlan {
            seconds: f64::NAN,
            ..plan()
        },
    ];
    for plan in bad {
        let why = plan.check().unwrap_err().to_string();
        assert!(why.contains("choose"), "{why}");
    }
}
