package ringmq.interop;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What comes again, what is given up, and what comes later. */
final class Retrying {
    /** How a message looked when the listener had it. */
    private record Look(int reconsumeTimes, String topic, String origin, String uniqueKey, String tags) {
    }

    private Retrying() {
    }

    /** A listener that fails every message until it has been retried so often; each retry comes after a second. */
    private static DefaultMQPushConsumer failing(World world, String group, String topic, int retries,
        Map<String, List<Look>> looks) throws Exception {
        // The client looks for the route of a topic that is new every 30 s only: the group's retry topic is made before.
        world.createTopic("%RETRY%" + group, 1);
        DefaultMQPushConsumer consumer = world.push(group);
        consumer.setMaxReconsumeTimes(2);
        consumer.subscribe(topic, "Tag");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            context.setDelayLevelWhenNextConsume(1);
            boolean enough = true;
            for (MessageExt message : batch) {
                looks.computeIfAbsent(message.getKeys(), key -> new ArrayList<>()).add(new Look(message.getReconsumeTimes(),
                    message.getTopic(), message.getProperty("ORIGIN_MESSAGE_ID"), message.getProperty("UNIQ_KEY"), message.getTags()));
                enough &= message.getReconsumeTimes() >= retries;
            }
            return enough ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS : ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        return consumer;
    }

    private static Map<String, SendResult> sendSome(World world, List<MessageQueue> queues, int count) throws Exception {
        Map<String, SendResult> sent = new TreeMap<>();
        for (int i = 0; i < count; i++) {
            MessageQueue queue = queues.get(i % queues.size());
            sent.put("k" + i, world.producer().send(World.message(queue.getTopic(), "Tag", "k" + i), queue));
        }
        return sent;
    }

    /** Each message fails twice: it comes three times, as the same message of the same topic, then no more. */
    static void retry(World world) throws Exception {
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Map<String, List<Look>> looks = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = failing(world, group, topic, 2, looks);
        Map<String, SendResult> sent = sendSome(world, queues, 12);
        world.report.check(world.check("all_come_three_times"),
            Await.until(() -> looks.size() == sent.size() && looks.values().stream().allMatch(list -> list.size() >= 3)), looks.toString());
        consumer.shutdown();
        Map<String, List<Look>> expected = new TreeMap<>();
        sent.forEach((key, result) -> {
            List<Look> three = new ArrayList<>();
            for (int times = 0; times < 3; times++) {
                String origin = times == 0 ? null : result.getOffsetMsgId();
                three.add(new Look(times, topic, origin, result.getMsgId(), "Tag"));
            }
            expected.put(key, three);
        });
        world.report.equal(world.check("times_topic_origin_key"), expected, new TreeMap<>(looks));
        world.report.equal(world.check("retries_stored"), 2L * sent.size(), world.storedCount("%RETRY%" + group));
    }

    /** Each message fails always: after two retries it is in the dead letter topic, once. */
    static void dlq(World world) throws Exception {
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Map<String, List<Look>> looks = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = failing(world, group, topic, Integer.MAX_VALUE, looks);
        Map<String, SendResult> sent = sendSome(world, queues, 6);
        String dead = "%DLQ%" + group;
        world.report.check(world.check("all_are_dead"), Await.until(() -> world.storedCount(dead) >= sent.size()), looks.toString());
        consumer.shutdown();
        Inbox inbox = world.readAll(dead, sent.size());
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(sent.keySet()));
        Set<String> wrong = new TreeSet<>();
        for (MessageExt message : inbox.all()) {
            SendResult result = sent.get(message.getKeys());
            boolean right = message.getReconsumeTimes() == 3 && topic.equals(message.getProperty("RETRY_TOPIC"))
                && result.getOffsetMsgId().equals(message.getProperty("ORIGIN_MESSAGE_ID"))
                && ("body of " + message.getKeys()).equals(new String(message.getBody(), java.nio.charset.StandardCharsets.UTF_8));
            if (!right) {
                wrong.add(message.toString());
            }
        }
        world.report.check(world.check("what_they_were"), wrong.isEmpty(), wrong.toString());
        Set<Integer> counts = new TreeSet<>();
        looks.values().forEach(list -> counts.add(list.size()));
        world.report.equal(world.check("consumed_three_times"), Set.of(3), counts);
    }

    /** Two delay levels and none: each message once, not before its time, in its queue, found by its tag. */
    static void delay(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        long[] delays = {0, 1_000, 5_000};
        Map<String, Long> notBefore = new ConcurrentHashMap<>();
        Map<String, Integer> wanted = new TreeMap<>();
        Inbox inbox = new Inbox();
        Set<String> early = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer consumer = world.push(world.name("g"));
        consumer.subscribe(topic, "Tag");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            long now = System.currentTimeMillis();
            batch.stream().map(MessageExt::getKeys).filter(key -> now < notBefore.get(key)).forEach(early::add);
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        for (int i = 0; i < 30; i++) {
            int level = i % delays.length;
            String key = "level" + level + "-" + i;
            Message message = World.message(topic, "Tag", key);
            message.setDelayTimeLevel(level);
            MessageQueue queue = queues.get(i % queues.size());
            // Brokers count from the moment at which they store it.
            notBefore.put(key, System.currentTimeMillis() + delays[level]);
            SendResult result = world.producer().send(message, queue);
            if (!result.getMessageQueue().equals(queue)) {
                world.report.fail(world.check("answer"), key + " went to " + result.getMessageQueue() + " instead of " + queue);
            }
            wanted.put(key, queue.getQueueId());
        }
        world.report.check(world.check("all_arrive"), inbox.awaitKeys(wanted.keySet()), inbox.differenceFrom(wanted.keySet()));
        consumer.shutdown();
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(wanted.keySet()));
        world.report.check(world.check("none_early"), early.isEmpty(), early.toString());
        Map<String, Integer> places = new TreeMap<>();
        Set<String> wrong = new TreeSet<>();
        for (MessageExt message : inbox.all()) {
            places.put(message.getKeys(), message.getQueueId());
            if (message.getDelayTimeLevel() > 0 && !topic.equals(message.getProperty("REAL_TOPIC"))) {
                wrong.add(message.getKeys());
            }
        }
        world.report.equal(world.check("in_their_queues"), wanted, places);
        world.report.check(world.check("real_topic"), wrong.isEmpty(), wrong.toString());
    }
}
