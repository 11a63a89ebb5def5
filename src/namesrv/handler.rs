//! A request in, a reply out. Pure but for log lines; what needs I/O is returned as an [`Outcome`] for `server`.

use super::kv::{KvChange, KvConfig, ORDER_TOPIC_CONFIG};
use super::routes::{ConnectionId, Queues, Registration, Routes, UnitTopics};
use super::settings::{Settings, UpdateError};
use ringmq_protocol::body::{
    Body, BrokerMemberGroup, BrokerMemberGroupBody, DataVersion, KvTable, MASTER_ID, RegisterBrokerBody,
    STANDARD_JSON_VERSION_MIN, TopicConfig, TopicList, TopicRouteData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{self, Ext, Fields, Frame, Header};
use ringmq_protocol::request::{
    AddWritePermRequest, AddWritePermResponse, BrokerHeartbeatRequest, DeleteKvConfigRequest,
    DeleteTopicInNamesrvRequest, FieldError, GetBrokerMemberGroupRequest, GetKvConfigRequest,
    GetKvConfigResponse, GetKvListByNamespaceRequest, GetRouteInfoRequest, GetTopicsByClusterRequest,
    PutKvConfigRequest, QueryDataVersionRequest, QueryDataVersionResponse, RegisterBrokerRequest,
    RegisterBrokerResponse, RegisterTopicRequest, UnregisterBrokerRequest, WipeWritePermRequest,
    WipeWritePermResponse,
};
use std::collections::BTreeSet;
use tracing::{info, warn};

/// Every zlib stream with a window of 32 KiB starts so, and no JSON object does.
const ZLIB_FIRST_BYTE: u8 = 0x78;
/// Room for the header of a reply when its body is compared with the largest frame, in bytes.
const HEADER_ROOM: usize = 64 * 1024;

/// All that the name server knows.
pub(super) struct NameServer {
    pub(super) routes: Routes,
    pub(super) kv: KvConfig,
    settings: Settings,
}

/// What is to be done for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Reply(Reply),
    /// Make this change of the KV configuration, durably if it is kept in a file, then say how it went.
    ChangeKv(KvChange),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    remark: Option<String>,
    ext: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(super) fn success() -> Reply {
        Reply { code: ResponseCode::SUCCESS, remark: None, ext: Vec::new(), body: Vec::new() }
    }

    fn failure(code: ResponseCode, remark: impl Into<String>) -> Reply {
        Reply { code, remark: Some(remark.into()), ..Reply::success() }
    }

    pub(super) fn error(remark: impl Into<String>) -> Reply {
        Reply::failure(ResponseCode::SYSTEM_ERROR, remark)
    }

    fn ext(self, fields: &dyn Fields) -> Reply {
        Reply { ext: fields.to_pairs(), ..self }
    }

    fn body(self, body: Vec<u8>) -> Reply {
        Reply { body, ..self }
    }

    /// This reply, or an error in its place if no peer would accept a frame that large.
    pub(super) fn fitting(self, frame_bytes_max: u32) -> Reply {
        if self.body.len() + HEADER_ROOM <= frame_bytes_max as usize {
            return self;
        }
        Reply::error(format!("the answer of {} bytes exceeds the largest frame", self.body.len()))
    }

    /// Appends the frame that answers a request with this header.
    pub(super) fn encode(&self, request: &Header<'_>, out: &mut Vec<u8>) {
        frame::encode(out, &request.reply(self.code, self.remark.as_deref()), &self.ext, self.body.len());
        out.extend_from_slice(&self.body);
    }
}

impl From<FieldError> for Reply {
    fn from(error: FieldError) -> Reply {
        Reply::error(error.to_string())
    }
}

impl NameServer {
    pub(super) fn new(kv: KvConfig) -> NameServer {
        NameServer { routes: Routes::new(), kv, settings: Settings::default() }
    }

    /// Handles the request in `frame`. `now_ms` is a monotonic time.
    pub(super) fn handle(&mut self, frame: &Frame<'_>, connection: ConnectionId, now_ms: u64) -> Outcome {
        let ext = &frame.header.ext;
        let reply = match RequestCode(frame.header.code) {
            RequestCode::GET_ROUTEINFO_BY_TOPIC => self.route(&frame.header),
            RequestCode::GET_BROKER_CLUSTER_INFO => {
                Ok(Reply::success().body(self.routes.cluster_info().to_json()))
            }

            RequestCode::REGISTER_BROKER => self.register(frame, connection, now_ms).inspect_err(|refusal| {
                let (addr, why) = (ext.get("brokerAddr"), refusal.remark.as_deref());
                warn!(
                    "refused the registration of {}: {}",
                    addr.unwrap_or_default(),
                    why.unwrap_or_default()
                );
            }),
            RequestCode::UNREGISTER_BROKER => self.unregister(ext),
            RequestCode::QUERY_DATA_VERSION => self.query_data_version(frame, now_ms),
            RequestCode::BROKER_HEARTBEAT => self.heartbeat(ext, now_ms),
            RequestCode::GET_BROKER_MEMBER_GROUP => self.member_group(ext),

            RequestCode::REGISTER_TOPIC_IN_NAMESRV => self.register_topic(frame),
            RequestCode::DELETE_TOPIC_IN_NAMESRV => self.delete_topic(ext),
            RequestCode::WIPE_WRITE_PERM_OF_BROKER => self.wipe_write_perm(ext),
            RequestCode::ADD_WRITE_PERM_OF_BROKER => self.add_write_perm(ext),

            RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                self.topic_list(self.settings.enable_all_topic_list, Routes::topics)
            }
            RequestCode::GET_TOPICS_BY_CLUSTER => GetTopicsByClusterRequest::decode(ext)
                .map_err(Reply::from)
                .and_then(|request| self.filtered(|routes| routes.topics_of_cluster(&request.cluster))),
            RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_NS => Ok(self.system_topics()),
            RequestCode::GET_UNIT_TOPIC_LIST => self.filtered(|routes| routes.unit_topics(UnitTopics::Unit)),
            RequestCode::GET_HAS_UNIT_SUB_TOPIC_LIST => {
                self.filtered(|routes| routes.unit_topics(UnitTopics::UnitSub))
            }
            RequestCode::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                self.filtered(|routes| routes.unit_topics(UnitTopics::UnitSubNotUnit))
            }

            RequestCode::PUT_KV_CONFIG => match PutKvConfigRequest::decode(ext) {
                Ok(PutKvConfigRequest { namespace, key, value }) => {
                    return Outcome::ChangeKv(KvChange::Put {
                        namespace: namespace.into_owned(),
                        key: key.into_owned(),
                        value: value.into_owned(),
                    });
                }
                Err(error) => Err(error.into()),
            },
            RequestCode::DELETE_KV_CONFIG => match DeleteKvConfigRequest::decode(ext) {
                Ok(DeleteKvConfigRequest { namespace, key }) => {
                    return Outcome::ChangeKv(KvChange::Delete {
                        namespace: namespace.into_owned(),
                        key: key.into_owned(),
                    });
                }
                Err(error) => Err(error.into()),
            },
            RequestCode::GET_KV_CONFIG => self.get_kv(ext),
            RequestCode::GET_KVLIST_BY_NAMESPACE => self.list_kv(ext),

            RequestCode::GET_NAMESRV_CONFIG => Ok(Reply::success().body(self.settings.text().into_bytes())),
            RequestCode::UPDATE_NAMESRV_CONFIG => self.update_settings(frame.body),

            RequestCode(code) => Err(Reply::failure(
                ResponseCode::REQUEST_CODE_NOT_SUPPORTED,
                format!(" request type {code} not supported"),
            )),
        };
        Outcome::Reply(reply.unwrap_or_else(|refusal| refusal))
    }

    // ---- clients ----

    fn route(&self, header: &Header<'_>) -> Result<Reply, Reply> {
        let request = GetRouteInfoRequest::decode(&header.ext)?;
        let topic = &*request.topic;
        let Some(mut route) = self.routes.route(topic, self.settings.support_acting_master) else {
            return Err(Reply::failure(
                ResponseCode::TOPIC_NOT_EXIST,
                format!(
                    "No topic route info in name server for the topic: {topic}\n\
                     See https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
                ),
            ));
        };
        if self.settings.order_message_enable {
            route.order_topic_conf = self.kv.get(ORDER_TOPIC_CONFIG, topic).map(str::to_owned);
        }
        keep_zone(&mut route, &header.ext);
        let standard = header.version >= STANDARD_JSON_VERSION_MIN || request.accept_standard_json_only;
        Ok(Reply::success().body(if standard { route.to_json() } else { route.to_json_legacy() }))
    }

    fn topic_list(
        &self,
        enabled: bool,
        list: impl FnOnce(&Routes) -> BTreeSet<String>,
    ) -> Result<Reply, Reply> {
        if !enabled {
            return Err(Reply::error("disable"));
        }
        let list = TopicList { topic_list: list(&self.routes), broker_addr: None };
        Ok(Reply::success().body(list.to_json()))
    }

    fn filtered(&self, list: impl FnOnce(&Routes) -> BTreeSet<String>) -> Result<Reply, Reply> {
        self.topic_list(self.settings.enable_topic_list, list)
    }

    fn system_topics(&self) -> Reply {
        let (topic_list, broker_addr) = self.routes.system_topics();
        Reply::success().body(TopicList { topic_list, broker_addr }.to_json())
    }

    // ---- brokers ----

    fn register(&mut self, frame: &Frame<'_>, connection: ConnectionId, now_ms: u64) -> Result<Reply, Reply> {
        let request = RegisterBrokerRequest::decode(&frame.header.ext)?;
        if request.body_crc32 != 0 && request.body_crc32 != crc32(frame.body) {
            return Err(Reply::error("crc32 not match"));
        }
        // Apache's brokers since 5.0 with compressedRegister=true compress the body and say that they do not.
        let compressed = request.compressed || frame.body.first() == Some(&ZLIB_FIRST_BYTE);
        let body = RegisterBrokerBody::decode(frame.body, frame.header.version, compressed)
            .map_err(|error| Reply::error(format!("body: {error}")))?;
        let wrapper = body.topic_config_serialize_wrapper;
        let registration = Registration {
            cluster: request.cluster_name.into_owned(),
            broker_name: request.broker_name.into_owned(),
            broker_addr: request.broker_addr.into_owned(),
            broker_id: request.broker_id,
            ha_server_addr: request.ha_server_addr.into_owned(),
            zone_name: request.zone_name.map(|zone| zone.into_owned()),
            // A negative time has always expired.
            heartbeat_timeout_ms: request.heartbeat_timeout_millis.map(|ms| u64::try_from(ms).unwrap_or(0)),
            enable_acting_master: request.enable_acting_master,
            data_version: wrapper.data_version,
            topics: wrapper
                .topic_config_table
                .into_iter()
                .map(|(topic, config)| (topic, queues(&config)))
                .collect(),
        };
        let is_new = self.routes.data_version(&registration.cluster, &registration.broker_addr).is_none();
        let who = is_new.then(|| {
            let Registration { cluster, broker_name, broker_addr, broker_id, topics, .. } = &registration;
            format!(
                "{broker_name} (id {broker_id}, cluster {cluster}) at {broker_addr} with {} topics",
                topics.len()
            )
        });
        let replace = self.settings.delete_topic_with_broker_registration;
        let registered = self
            .routes
            .register(registration, replace, connection, now_ms)
            .map_err(|error| Reply::error(error.to_string()))?;
        if let Some(who) = who {
            info!("registered {who}");
        }
        let reply = Reply::success().ext(&RegisterBrokerResponse {
            ha_server_addr: registered.ha_server_addr.map(Into::into),
            master_addr: registered.master_addr.map(Into::into),
        });
        let order = self.kv.namespace(ORDER_TOPIC_CONFIG);
        match order.filter(|_| self.settings.return_order_topic_config_to_broker) {
            Some(table) => Ok(reply.body(KvTable { table: table.clone() }.to_json())),
            None => Ok(reply),
        }
    }

    fn unregister(&mut self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let request = UnregisterBrokerRequest::decode(ext)?;
        if self.routes.unregister(&request.cluster_name, &request.broker_name, &request.broker_addr) {
            info!("{} at {} unregistered itself", request.broker_name, request.broker_addr);
        }
        Ok(Reply::success())
    }

    fn query_data_version(&mut self, frame: &Frame<'_>, now_ms: u64) -> Result<Reply, Reply> {
        let request = QueryDataVersionRequest::decode(&frame.header.ext)?;
        let version =
            DataVersion::from_json(frame.body).map_err(|error| Reply::error(format!("body: {error}")))?;
        let (cluster, addr) = (&*request.cluster_name, &*request.broker_addr);
        self.routes.refresh(cluster, addr, now_ms);
        let changed = self.routes.data_version_changed(cluster, addr, &version);
        let reply = Reply::success().ext(&QueryDataVersionResponse { changed });
        Ok(match self.routes.data_version(cluster, addr) {
            Some(known) => reply.body(known.to_json()),
            None => reply,
        })
    }

    fn heartbeat(&mut self, ext: &Ext<'_>, now_ms: u64) -> Result<Reply, Reply> {
        let request = BrokerHeartbeatRequest::decode(ext)?;
        self.routes.refresh(&request.cluster_name, &request.broker_addr, now_ms);
        Ok(Reply::success())
    }

    fn member_group(&self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let request = GetBrokerMemberGroupRequest::decode(ext)?;
        let broker_addrs = self.routes.member_group(&request.cluster_name, &request.broker_name);
        let body = BrokerMemberGroupBody {
            broker_member_group: BrokerMemberGroup {
                cluster: request.cluster_name.into_owned(),
                broker_name: request.broker_name.into_owned(),
                broker_addrs,
            },
        };
        Ok(Reply::success().body(body.to_json()))
    }

    // ---- administrators ----

    fn register_topic(&mut self, frame: &Frame<'_>) -> Result<Reply, Reply> {
        let request = RegisterTopicRequest::decode(&frame.header.ext)?;
        let route =
            TopicRouteData::from_json(frame.body).map_err(|error| Reply::error(format!("body: {error}")))?;
        let queues: Vec<(String, Queues)> = route
            .queue_datas
            .into_iter()
            .map(|data| {
                let queues = Queues {
                    read_queue_nums: data.read_queue_nums,
                    write_queue_nums: data.write_queue_nums,
                    perm: data.perm,
                    topic_sys_flag: data.topic_sys_flag,
                };
                (data.broker_name, queues)
            })
            .collect();
        self.routes.register_topic(&request.topic, &queues);
        Ok(Reply::success())
    }

    fn delete_topic(&mut self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let request = DeleteTopicInNamesrvRequest::decode(ext)?;
        let cluster = request.cluster_name.filter(|cluster| !cluster.is_empty());
        self.routes.delete_topic(&request.topic, cluster.as_deref());
        Ok(Reply::success())
    }

    fn wipe_write_perm(&mut self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let request = WipeWritePermRequest::decode(ext)?;
        let count = self.routes.wipe_write_perm(&request.broker_name);
        info!("write permission of {} wiped for {count} topics", request.broker_name);
        Ok(Reply::success().ext(&WipeWritePermResponse { wipe_topic_count: saturated(count) }))
    }

    fn add_write_perm(&mut self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let request = AddWritePermRequest::decode(ext)?;
        let count = self.routes.add_write_perm(&request.broker_name);
        info!("write permission of {} restored for {count} topics", request.broker_name);
        Ok(Reply::success().ext(&AddWritePermResponse { add_topic_count: saturated(count) }))
    }

    fn get_kv(&self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let GetKvConfigRequest { namespace, key } = GetKvConfigRequest::decode(ext)?;
        match self.kv.get(&namespace, &key) {
            Some(value) => Ok(Reply::success().ext(&GetKvConfigResponse { value: Some(value.into()) })),
            None => Err(Reply::failure(
                ResponseCode::QUERY_NOT_FOUND,
                format!("No config item, Namespace: {namespace} Key: {key}"),
            )),
        }
    }

    fn list_kv(&self, ext: &Ext<'_>) -> Result<Reply, Reply> {
        let GetKvListByNamespaceRequest { namespace } = GetKvListByNamespaceRequest::decode(ext)?;
        match self.kv.namespace(&namespace) {
            Some(table) => Ok(Reply::success().body(KvTable { table: table.clone() }.to_json())),
            None => Err(Reply::failure(
                ResponseCode::QUERY_NOT_FOUND,
                format!("No config item, Namespace: {namespace}"),
            )),
        }
    }

    fn update_settings(&mut self, body: &[u8]) -> Result<Reply, Reply> {
        let text = std::str::from_utf8(body).map_err(|_| Reply::error("the body is not UTF-8"))?;
        match self.settings.updated(text) {
            Ok(settings) => {
                if settings != self.settings {
                    info!("settings changed: {}", settings.text().trim_end().replace('\n', ", "));
                }
                self.settings = settings;
                Ok(Reply::success())
            }
            Err(error @ UpdateError::NotAllowed(_)) => {
                Err(Reply::failure(ResponseCode::NO_PERMISSION, error.to_string()))
            }
            Err(error) => Err(Reply::error(error.to_string())),
        }
    }
}

/// Leaves the brokers of the zone that the client asks for, and those without a master, which any zone may use.
fn keep_zone(route: &mut TopicRouteData, ext: &Ext<'_>) {
    if !ext.get("__ZONE_MODE").is_some_and(|mode| mode.eq_ignore_ascii_case("true")) {
        return;
    }
    let Some(zone) = ext.get("__ZONE_NAME").filter(|zone| !zone.is_empty()) else { return };
    route.broker_datas.retain(|broker| {
        !broker.broker_addrs.contains_key(&MASTER_ID)
            || broker.zone_name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&zone))
    });
    let kept = &route.broker_datas;
    route.queue_datas.retain(|queues| kept.iter().any(|broker| broker.broker_name == queues.broker_name));
}

fn queues(config: &TopicConfig) -> Queues {
    Queues {
        read_queue_nums: config.read_queue_nums,
        write_queue_nums: config.write_queue_nums,
        perm: config.perm,
        topic_sys_flag: config.topic_sys_flag,
    }
}

/// CRC-32 without its sign bit, as RocketMQ writes it into signed fields.
fn crc32(bytes: &[u8]) -> i32 {
    (crc32fast::hash(bytes) & 0x7FFF_FFFF) as i32 // 31 bits fit
}

fn saturated(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
