package ringmq.interop;

import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/**
 * What operators do to consumer groups, with RocketMQ's own administration: look at a live one through the broker, set where
 * it goes on while it is online and when it is not, change and delete it. Types that moved between the client's versions are
 * not named here.
 */
final class Groups {
    private static final int PER_QUEUE = 5;

    private Groups() {
    }

    private interface Step {
        void run(DefaultMQAdminExt admin) throws Exception;
    }

    private static void withAdmin(World world, Step step) throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt(10_000);
        admin.setNamesrvAddr(world.namesrv);
        admin.setAdminExtGroup(world.name("admin"));
        admin.setInstanceName(world.name("admin"));
        admin.start();
        try {
            step.run(admin);
        } finally {
            admin.shutdown();
        }
    }

    /** Addresses of the brokers, by name. */
    private static Map<String, String> addresses(DefaultMQAdminExt admin) throws Exception {
        Map<String, String> addresses = new TreeMap<>();
        admin.examineBrokerClusterInfo().getBrokerAddrTable()
            .forEach((name, broker) -> addresses.put(name, broker.selectBrokerAddr()));
        return addresses;
    }

    /** Connection, running information, status, progress and direct consumption of a group that is online. */
    static void live(World world) throws Exception {
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(inbox, group, topic, "*");
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k-", PER_QUEUE * queues.size()));
        world.report.check(world.check("consumed"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        SendResult last = world.producer().send(World.message(topic, "T", "direct"), queues.get(0));
        keys.add("direct");
        world.report.check(world.check("last_consumed"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        withAdmin(world, admin -> {
            var connection = admin.examineConsumerConnectionInfo(group);
            List<String> clients = new ArrayList<>();
            connection.getConnectionSet().forEach(member -> clients.add(member.getClientId()));
            world.report.equal(world.check("connection"), 1, clients.size());
            world.report.equal(world.check("subscription"), "*", connection.getSubscriptionTable().get(topic).getSubString());
            String client = clients.get(0);

            var info = admin.getConsumerRunningInfo(group, client, false);
            Set<MessageQueue> held = new TreeSet<>(info.getMqTable().keySet());
            world.report.check(world.check("running_info"), held.containsAll(queues), held + " instead of " + queues);
            world.report.check(world.check("running_info_subscription"),
                info.getSubscriptionSet().stream().anyMatch(data -> data.getTopic().equals(topic)), "no subscription to " + topic);

            Map<MessageQueue, Long> status = new TreeMap<>(admin.getConsumeStatus(topic, group, "").get(client));
            world.report.equal(world.check("status"), new TreeSet<>(queues), new TreeSet<>(status.keySet()));

            boolean settled = Await.until(() -> admin.examineConsumeStats(group, topic).computeTotalDiff() == 0);
            var stats = admin.examineConsumeStats(group, topic);
            world.report.check(world.check("progress"), settled && stats.getOffsetTable().size() == queues.size(), stats.getOffsetTable().toString());
            world.report.equal(world.check("time_span"), queues.size(), admin.queryConsumeTimeSpan(topic, group).size());

            var result = admin.consumeMessageDirectly(group, client, topic, last.getOffsetMsgId());
            world.report.equal(world.check("consumed_directly"), "CR_SUCCESS", String.valueOf(result.getConsumeResult()));
            world.report.equal(world.check("direct_message_seen_again"), 2, inbox.counts().get("direct"));
        });
        consumer.shutdown();
    }

    /** Offsets set from outside, while the group is online and when it is not. */
    static void offsets(World world) throws Exception {
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(inbox, group, topic, "*");
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k-", PER_QUEUE * queues.size()));
        world.report.check(world.check("consumed"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        long[] left = {0};
        withAdmin(world, admin -> {
            Map<MessageQueue, Long> reset = new TreeMap<>(admin.resetOffsetByTimestamp(topic, group, 0, true));
            world.report.equal(world.check("reset_answer"), everywhere(queues, 0), reset);
            boolean again = inbox.await(seen -> keys.stream().allMatch(key -> seen.counts().getOrDefault(key, 0) >= 2));
            world.report.check(world.check("live_group_goes_back"), again, inbox.counts().toString());
            consumer.shutdown();

            DefaultMQPullConsumer store = world.pull(group);
            world.sendTo(queues, "T", "skipped-", 2 * queues.size());
            admin.resetOffsetByTimestamp(topic, group, -1, true);
            world.report.equal(world.check("skip"), everywhere(queues, PER_QUEUE + 2), Pulling.committed(store, queues));

            MessageQueue one = queues.get(0);
            Map<MessageQueue, Long> expected = everywhere(queues, PER_QUEUE + 2);
            if (resetQueue(admin, addresses(admin).get(one.getBrokerName()), group, one, PER_QUEUE)) {
                expected.put(one, (long) PER_QUEUE);
                left[0] = 2;
                world.report.equal(world.check("one_queue"), expected, Pulling.committed(store, queues));
            } else {
                world.report.note(world.scenario + ": this client cannot reset a single queue");
            }

            String copy = world.name("copy");
            admin.cloneGroupOffset(group, copy, topic, true);
            world.report.equal(world.check("clone"), expected, Pulling.committed(world.pull(copy), queues));
            // It is a member, and would be given queues that it does not consume.
            store.shutdown();
        });
        // The group comes back: it gets what the reset left to it, and goes on.
        Inbox rest = new Inbox();
        DefaultMQPushConsumer later = world.pushInto(rest, group, topic, "*");
        Set<String> wanted = new TreeSet<>(world.sendFence(topic, "T", "after"));
        world.report.check(world.check("goes_on"), rest.awaitKeys(wanted), rest.differenceFrom(wanted));
        long skipped = rest.counts().keySet().stream().filter(key -> key.startsWith("skipped-")).count();
        world.report.equal(world.check("only_what_was_left"), left[0], skipped);
        later.shutdown();
    }

    /** Settings of groups, and the configuration of ordered topics. */
    static void settings(World world) throws Exception {
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(inbox, group, topic, "*");
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k-", queues.size()));
        world.report.check(world.check("consumed"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        consumer.shutdown();
        withAdmin(world, admin -> {
            for (Map.Entry<String, String> broker : addresses(admin).entrySet()) {
                var config = admin.examineSubscriptionGroupConfig(broker.getValue(), group);
                config.setRetryMaxTimes(3);
                config.setConsumeEnable(false);
                admin.createAndUpdateSubscriptionGroupConfig(broker.getValue(), config);
                var changed = admin.examineSubscriptionGroupConfig(broker.getValue(), group);
                world.report.equal(world.check("updated_" + broker.getKey()), "3 false",
                    changed.getRetryMaxTimes() + " " + changed.isConsumeEnable());
            }
            // A group that may not consume does not.
            Inbox none = new Inbox();
            DefaultMQPushConsumer refused = world.pushInto(none, group, topic, "*");
            List<String> later = world.sendTo(queues, "T", "later-", queues.size());
            Inbox witness = new Inbox();
            world.pushInto(witness, world.name("witness"), topic, "*");
            world.report.check(world.check("others_consume"), witness.awaitKeys(new TreeSet<>(later)), witness.differenceFrom(later));
            world.report.equal(world.check("disabled_group_gets_nothing"), 0, none.counts().size());
            refused.shutdown();

            for (String address : addresses(admin).values()) {
                admin.deleteSubscriptionGroup(address, group, true);
            }
            DefaultMQPullConsumer store = world.pull(group);
            long offset = store.fetchConsumeOffset(queues.get(0), true);
            world.report.check(world.check("deleted_with_offsets"), offset <= 0, "offset " + offset);

            String conf = queues.get(0).getBrokerName() + ":1";
            admin.createOrUpdateOrderConf(topic, conf, true);
            world.report.equal(world.check("order_conf"), conf, admin.examineTopicRouteInfo(topic).getOrderTopicConf());
        });
    }

    /** Sets one queue of a group, if this version of the client can: 4.9 cannot. */
    private static boolean resetQueue(DefaultMQAdminExt admin, String address, String group, MessageQueue queue, long offset)
        throws Exception {
        for (Method method : DefaultMQAdminExt.class.getMethods()) {
            if (method.getName().equals("resetOffsetByQueueId")) {
                method.invoke(admin, address, group, queue.getTopic(), queue.getQueueId(), offset);
                return true;
            }
        }
        return false;
    }

    private static Map<MessageQueue, Long> everywhere(List<MessageQueue> queues, long offset) {
        Map<MessageQueue, Long> map = new TreeMap<>();
        queues.forEach(queue -> map.put(queue, offset));
        return map;
    }
}
