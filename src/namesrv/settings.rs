//! The settings that GET_NAMESRV_CONFIG shows and UPDATE_NAMESRV_CONFIG may change while the server runs.
//!
//! An allow list: switches with a type, and nothing else. No path, address, command or limit is ever among them
//! (CVE-2023-37582 was a name server whose list named what is forbidden).

use std::fmt::Write;
use thiserror::Error;

/// Switches with RocketMQ's names and, but for the first one, its defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Routes carry the topic's value of the KV namespace ORDER_TOPIC_CONFIG. Whoever puts one there means it: on, though
    /// RocketMQ has it off.
    pub order_message_enable: bool,
    /// A registering broker is told that namespace.
    pub return_order_topic_config_to_broker: bool,
    /// Lists of topics by cluster and by unit flag are answered.
    pub enable_topic_list: bool,
    /// The list of all topics is answered.
    pub enable_all_topic_list: bool,
    /// A slave may stand in for a missing master, read-only.
    pub support_acting_master: bool,
    /// A registration removes the topics it does not name.
    pub delete_topic_with_broker_registration: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            order_message_enable: true,
            return_order_topic_config_to_broker: true,
            enable_topic_list: true,
            enable_all_topic_list: true,
            support_acting_master: false,
            delete_topic_with_broker_registration: false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UpdateError {
    #[error("{0} cannot be changed while the name server runs")]
    NotAllowed(String),
    #[error("{name} is true or false, not {value:?}")]
    BadValue { name: &'static str, value: String },
    #[error("not a line of the form name=value: {0:?}")]
    BadLine(String),
}

type Switch = fn(&mut Settings) -> &mut bool;

const SWITCHES: [(&str, Switch); 6] = [
    ("deleteTopicWithBrokerRegistration", |s| &mut s.delete_topic_with_broker_registration),
    ("enableAllTopicList", |s| &mut s.enable_all_topic_list),
    ("enableTopicList", |s| &mut s.enable_topic_list),
    ("orderMessageEnable", |s| &mut s.order_message_enable),
    ("returnOrderTopicConfigToBroker", |s| &mut s.return_order_topic_config_to_broker),
    ("supportActingMaster", |s| &mut s.support_acting_master),
];

impl Settings {
    /// All settings as lines `name=value`.
    pub fn text(mut self) -> String {
        let mut text = String::new();
        for (name, switch) in SWITCHES {
            let _ = writeln!(text, "{name}={}", switch(&mut self));
        }
        text
    }

    /// These settings with the lines `name=value` of `text` applied, all or none. Empty lines and lines that start
    /// with `#` or `!` say nothing.
    pub fn updated(mut self, text: &str) -> Result<Settings, UpdateError> {
        for line in
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '!']))
        {
            let Some((name, value)) = line.split_once('=') else {
                return Err(UpdateError::BadLine(line.to_owned()));
            };
            let (name, value) = (name.trim(), value.trim());
            let Some((name, switch)) = SWITCHES.into_iter().find(|(known, _)| *known == name) else {
                return Err(UpdateError::NotAllowed(name.to_owned()));
            };
            *switch(&mut self) =
                value.parse().map_err(|_| UpdateError::BadValue { name, value: value.to_owned() })?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_update_are_inverse() {
        let changed =
            Settings { order_message_enable: true, enable_topic_list: false, ..Settings::default() };
        assert_eq!(Settings::default().updated(&changed.text()), Ok(changed));
        assert_eq!(changed.text().lines().count(), SWITCHES.len());
        assert!(changed.text().contains("orderMessageEnable=true\n"));
        assert_eq!(changed.updated("# comment\n\n ! another\r\n"), Ok(changed));
    }

    #[test]
    fn an_update_is_all_or_nothing_and_knows_no_other_name() {
        let refused = Settings::default().updated("orderMessageEnable=true\nkvConfigPath=x");
        assert_eq!(refused, Err(UpdateError::NotAllowed("kvConfigPath".into())));
        for name in
            ["configStorePath", "rocketmqHome", "configBlackList", "listenPort", "orderMessageenable", ""]
        {
            let refused = Settings::default().updated(&format!("{name}=true"));
            assert_eq!(refused, Err(UpdateError::NotAllowed(name.into())));
        }
        let name = "orderMessageEnable";
        assert_eq!(
            Settings::default().updated("orderMessageEnable = yes"),
            Err(UpdateError::BadValue { name, value: "yes".into() })
        );
        assert_eq!(Settings::default().updated(name), Err(UpdateError::BadLine(name.into())));
    }
}
