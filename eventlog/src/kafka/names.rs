//! What things are called at the brokers.

use crate::Topic;

/// The names of the topics with their prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    topics: [String; Topic::ALL.len()],
}

impl Names {
    pub(super) fn new(prefix: &str) -> Names {
        Names {
            prefix: prefix.to_owned(),
            topics: Topic::ALL.map(|topic| format!("{prefix}{topic}")),
        }
    }

    /// What the broker calls the topic.
    pub(super) fn of(&self, topic: Topic) -> &str {
        &self.topics[topic as usize - 1]
    }

    /// Which topic the broker means, if it is one of ours.
    pub(super) fn topic(&self, name: &str) -> Option<Topic> {
        Topic::from_name(name.strip_prefix(&self.prefix)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_topics() {
        let names = Names::new("oslo.");
        for topic in Topic::ALL {
            assert_eq!(names.topic(names.of(topic)), Some(topic));
        }
        assert_eq!(names.of(Topic::ShardState), "oslo.shard-state");
        assert_eq!(names.topic("ride-events"), None);
    }
}
