//! Settings of consumer groups: made by the first who comes, changed and deleted by operators.
//!
//! A group's record has all that was set for it (`Groups::record`); its retry topic is a topic like any other.

use super::admin::reply_body;
use super::effects::Effects;
use super::limits::{FORBIDDEN_TOPICS_MAX, GROUP_CONFIG_BYTES_MAX, GROUPS_MAX, TOPIC_QUEUES_MAX};
use super::records::{self, kind};
use super::{Refusal, Request, Shard, groups::Groups};
use ringmq_protocol::body::{
    Body, GroupForbidden, SubscriptionGroupConfig, SubscriptionGroupList, SubscriptionGroupWrapper,
    TopicConfig, perm,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::name;
use ringmq_protocol::request::{
    DeleteSubscriptionGroupRequest, GetSubscriptionGroupConfigRequest, UpdateGroupForbiddenRequest,
};

impl Shard {
    /// What operators ask about groups and how far they are.
    pub(super) fn on_group_admin(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let ext = &request.header.ext;
        match request.code() {
            RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => {
                let config = SubscriptionGroupConfig::from_json(request.body).map_err(Refusal::unreadable)?;
                self.put_groups(request, vec![config], fx)
            }
            RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => {
                let list = SubscriptionGroupList::from_json(request.body).map_err(Refusal::unreadable)?;
                self.put_groups(request, list.group_config_list, fx)
            }
            RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => {
                let body = SubscriptionGroupWrapper {
                    subscription_group_table: self.groups.configs.clone(),
                    forbidden_table: self.groups.forbidden.clone(),
                    ..SubscriptionGroupWrapper::default()
                };
                reply_body(request.to, &body, fx);
                Ok(())
            }
            RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG => {
                let asked = GetSubscriptionGroupConfigRequest::decode(ext)?;
                self.ensure_group(&asked.group, fx)?;
                reply_body(request.to, &self.groups.configs[&*asked.group], fx);
                Ok(())
            }
            RequestCode::DELETE_SUBSCRIPTIONGROUP => {
                let asked = DeleteSubscriptionGroupRequest::decode(ext)?;
                self.delete_group(&asked.group_name, asked.clean_offset || asked.remove_offset)?;
                self.reply_when_durable(request.to, fx)
            }
            RequestCode::UPDATE_AND_GET_GROUP_FORBIDDEN => self.on_group_forbidden(request, fx),
            _ => self.on_progress(request, fx),
        }
    }

    /// UPDATE_AND_CREATE_SUBSCRIPTIONGROUP (200) and …_LIST (225): all are checked before the first one changes.
    fn put_groups(
        &mut self,
        request: &Request<'_>,
        configs: Vec<SubscriptionGroupConfig>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let mut made = 0;
        for config in &configs {
            check_config(config).map_err(Refusal::invalid)?;
            made += usize::from(!self.groups.configs.contains_key(&config.group_name));
        }
        if self.groups.configs.len() + made > GROUPS_MAX {
            let remark = format!("there are {GROUPS_MAX} groups at most");
            return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
        }
        for config in configs {
            let forbidden = self.groups.forbidden.get(&config.group_name);
            self.append_record(kind::GROUP, &Groups::record(&config, forbidden))?;
            self.groups.put(config);
        }
        self.reply_when_durable(request.to, fx)
    }

    /// DELETE_SUBSCRIPTIONGROUP (207): the settings, and if asked the offsets and locks. The retry topic stays until it
    /// is deleted as a topic.
    fn delete_group(&mut self, group: &str, with_offsets: bool) -> Result<(), Refusal> {
        let has_offsets = with_offsets && self.offsets.has_group(group);
        if !self.groups.configs.contains_key(group) && !has_offsets {
            return Ok(());
        }
        self.append_record(kind::GROUP_DELETED, &records::encode_group_deleted(with_offsets, group))?;
        if let Some(admission) = self.groups.admission(group) {
            self.offsets.forget_pulled_by(admission.number);
        }
        self.groups.remove(group);
        if with_offsets {
            self.offsets.remove_group(group);
            self.pops.flights.remove_group(group);
            self.locks.remove_group(group);
        }
        Ok(())
    }

    /// UPDATE_AND_GET_GROUP_FORBIDDEN (353): whether the group may read a topic.
    fn on_group_forbidden(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = UpdateGroupForbiddenRequest::decode(&request.header.ext)?;
        let (group, topic) = (&*asked.group, &*asked.topic);
        if self.topics.get(topic).is_none() {
            return Err(Refusal::no_topic(topic));
        }
        self.ensure_group(group, fx)?;
        let known = !self.groups.is_forbidden(group, topic);
        let readable = asked.readable.unwrap_or(known);
        if readable != known {
            let forbidden = self.groups.with_forbidden(group, topic, readable);
            if forbidden.len() > FORBIDDEN_TOPICS_MAX {
                let remark =
                    format!("{FORBIDDEN_TOPICS_MAX} topics are forbidden to {group}, which is the limit");
                return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
            }
            let body = Groups::record(&self.groups.configs[group], Some(&forbidden));
            self.append_record(kind::GROUP, &body)?;
            self.groups.forbidden.insert(group.to_owned(), forbidden);
        }
        let body = GroupForbidden { group: group.to_owned(), topic: topic.to_owned(), readable };
        self.body_when_durable(request.to, &body.to_json(), fx)
    }

    /// Makes the settings of a group that nobody made before, with RocketMQ's defaults. A log that takes no record does
    /// not keep a group from consuming: after a restart the same defaults would be made again.
    pub(super) fn ensure_group(&mut self, group: &str, fx: &mut Effects) -> Result<(), Refusal> {
        if self.groups.admission(group).is_some() {
            return Ok(());
        }
        name::validate_group(group).map_err(|error| Refusal::no_group(group, &error.to_string()))?;
        if self.groups.configs.len() >= GROUPS_MAX {
            let problem = format!("there are {GROUPS_MAX} groups, which is the limit");
            fx.log_error(format!("{}: group {group} refused: {problem}", self.config.broker_name));
            return Err(Refusal::no_group(group, &problem));
        }
        let config = SubscriptionGroupConfig::new(group);
        let _ = self.append_record(kind::GROUP, &Groups::record(&config, None));
        self.groups.put(config);
        Ok(())
    }

    /// Consumers subscribe to their group's retry topic, and tools find a group through its route.
    pub(super) fn ensure_retry_topic(&mut self, group: &str, is_ordered: bool) -> Result<(), Refusal> {
        let topic = name::retry_topic(group);
        if self.topics.get(&topic).is_some() {
            return Ok(());
        }
        let queue_count = self.groups.configs[group].retry_queue_nums.max(1) as u32;
        let config = TopicConfig::new(&*topic, queue_count, perm::READ | perm::WRITE);
        self.put_topic(TopicConfig { order: is_ordered, ..config }, None)
    }
}

impl Refusal {
    pub(super) fn no_group(group: &str, why: &str) -> Refusal {
        let remark = format!("subscription group [{group}] does not exist: {why}");
        Refusal::new(ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST, remark)
    }
}

/// What is wrong with a group's settings, if anything.
fn check_config(config: &SubscriptionGroupConfig) -> Result<(), String> {
    name::validate_group(&config.group_name).map_err(|error| error.to_string())?;
    let queues = i64::from(config.retry_queue_nums);
    if !(0..=i64::from(TOPIC_QUEUES_MAX)).contains(&queues) {
        return Err(format!("retryQueueNums {queues} must be between 0 and {TOPIC_QUEUES_MAX}"));
    }
    let bytes = config.to_json().len();
    if bytes > GROUP_CONFIG_BYTES_MAX {
        return Err(format!(
            "the settings of group {} take {bytes} bytes, at most {GROUP_CONFIG_BYTES_MAX} are allowed",
            config.group_name
        ));
    }
    Ok(())
}
