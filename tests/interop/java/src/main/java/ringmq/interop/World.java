package ringmq.interop;

import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;

/** The clients, topics and groups of one scenario. Every client it hands out is shut down when it is closed. */
final class World implements AutoCloseable {
    static final String DEFAULT_TOPIC = "TBW102";
    private static final AtomicInteger INSTANCES = new AtomicInteger();

    final String namesrv;
    final String runId;
    final String scenario;
    final Report report;
    private final Deque<Runnable> closers = new ArrayDeque<>();
    private DefaultMQProducer producer;
    private DefaultMQPullConsumer reader;

    World(String namesrv, String runId, String scenario, Report report) {
        this.namesrv = namesrv;
        this.runId = runId;
        this.scenario = scenario;
        this.report = report;
    }

    /** A name no other scenario or run uses, fit for a topic or a group. */
    String name(String suffix) {
        return "it-" + runId + "-" + scenario + "-" + suffix;
    }

    String check(String name) {
        return scenario + "." + name;
    }

    // Producers

    DefaultMQProducer producer() throws Exception {
        if (producer == null) {
            producer = producer(null);
        }
        return producer;
    }

    DefaultMQProducer producer(RPCHook hook) throws Exception {
        DefaultMQProducer created = new DefaultMQProducer(name("p"), hook);
        configure(created);
        created.setSendMsgTimeout(10_000);
        // A retried send may store a message twice; these tests count copies, and a failed send is a finding.
        created.setRetryTimesWhenSendFailed(0);
        created.setRetryTimesWhenSendAsyncFailed(0);
        created.start();
        closers.push(created::shutdown);
        return created;
    }

    // Topics

    /** Makes a topic with the given number of queues on every broker and waits until the route shows them all. */
    List<MessageQueue> createTopic(String topic, int queuesPerBroker) throws Exception {
        int brokers = brokers().size();
        // The signature differs between 4.9 and 5.x; no other call used here does.
        Method four = null;
        Method three = null;
        for (Method method : DefaultMQProducer.class.getMethods()) {
            if (method.getName().equals("createTopic")) {
                Class<?>[] types = method.getParameterTypes();
                if (types.length == 3) {
                    three = method;
                } else if (types.length == 4 && types[3] == Map.class) {
                    four = method;
                }
            }
        }
        if (four != null) {
            four.invoke(producer(), DEFAULT_TOPIC, topic, queuesPerBroker, Collections.emptyMap());
        } else {
            three.invoke(producer(), DEFAULT_TOPIC, topic, queuesPerBroker);
        }
        return awaitQueues(topic, brokers * queuesPerBroker);
    }

    private List<MessageQueue> awaitQueues(String topic, int wanted) throws Exception {
        if (!Await.until(() -> producer().fetchPublishMessageQueues(topic).size() == wanted)) {
            throw new IllegalStateException("the route of " + topic + " does not show " + wanted + " queues");
        }
        return queues(topic);
    }

    /** Makes a topic with a queue on every broker whose messages go after a time, like {@code 45s}; that takes RingMQ's own tool. */
    List<MessageQueue> createTopicWithRetention(String topic, String retention) throws Exception {
        List<String> command = List.of(System.getProperty("interop.tool"), "--namesrv", namesrv,
            "topic", "create", topic, "--queues", "1", "--retention", retention);
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String printed = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        if (process.waitFor() != 0) {
            throw new IllegalStateException(command + ": " + printed);
        }
        return awaitQueues(topic, brokers().size());
    }

    List<MessageQueue> queues(String topic) throws Exception {
        List<MessageQueue> queues = new ArrayList<>(producer().fetchPublishMessageQueues(topic));
        Collections.sort(queues);
        return queues;
    }

    /** Names of the brokers that auto-create topics, which are all of them. */
    TreeSet<String> brokers() throws Exception {
        TreeSet<String> brokers = new TreeSet<>();
        producer().fetchPublishMessageQueues(DEFAULT_TOPIC).forEach(queue -> brokers.add(queue.getBrokerName()));
        return brokers;
    }

    // Messages

    static Message message(String topic, String tags, String key) {
        return new Message(topic, tags, key, ("body of " + key).getBytes(StandardCharsets.UTF_8));
    }

    static MessageQueue queueOf(MessageExt message) {
        return new MessageQueue(message.getTopic(), message.getBrokerName(), message.getQueueId());
    }

    /** Sends one message to every queue; once they arrive, all that was ahead of them in its queue has arrived too. */
    List<String> sendFence(String topic, String tags, String mark) throws Exception {
        List<String> keys = new ArrayList<>();
        for (MessageQueue queue : queues(topic)) {
            String key = "fence-" + mark + "-" + queue.getBrokerName() + "-" + queue.getQueueId();
            producer().send(message(topic, tags, key), queue);
            keys.add(key);
        }
        return keys;
    }

    List<String> sendTo(List<MessageQueue> queues, String tags, String prefix, int count) throws Exception {
        List<String> keys = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            String key = prefix + i;
            producer().send(message(queues.get(0).getTopic(), tags, key), queues.get(i % queues.size()));
            keys.add(key);
        }
        return keys;
    }

    // Consumers

    /** A push consumer that reads from the first offset; the caller subscribes, registers and starts it. */
    DefaultMQPushConsumer push(String group) {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        configure(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setConsumeThreadMin(4);
        consumer.setConsumeThreadMax(4);
        // Shutting down first finishes what was already pulled, so that counts taken afterwards are final.
        consumer.setAwaitTerminationMillisWhenShutdown(10_000);
        closers.push(consumer::shutdown);
        return consumer;
    }

    DefaultMQPushConsumer pushInto(Inbox inbox, String group, String topic, String expression) throws Exception {
        DefaultMQPushConsumer consumer = push(group);
        consumer.subscribe(topic, expression);
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        return consumer;
    }

    DefaultLitePullConsumer lite(String group) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
        configure(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setAutoCommit(false);
        closers.push(consumer::shutdown);
        return consumer;
    }

    DefaultMQPullConsumer pull(String group) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group);
        start(consumer);
        return consumer;
    }

    void start(DefaultMQPullConsumer consumer) throws Exception {
        configure(consumer);
        consumer.start();
        closers.push(consumer::shutdown);
    }

    /**
     * Everything the topic holds, queue by queue, read without a subscription, once it holds as much as was sent: Apache's
     * broker acknowledges a message before a pull can find it.
     */
    Inbox readAll(String topic, int sent) throws Exception {
        Await.until(() -> storedCount(topic) >= sent);
        if (reader == null) {
            reader = pull(name("reader"));
        }
        Inbox inbox = new Inbox();
        for (MessageQueue queue : queues(topic)) {
            long end = reader.maxOffset(queue);
            long offset = reader.minOffset(queue);
            while (offset < end) {
                PullResult result = reader.pull(queue, "*", offset, 32, 10_000);
                if (result.getPullStatus() != PullStatus.FOUND || result.getNextBeginOffset() <= offset) {
                    throw new IllegalStateException("pull of " + queue + " at " + offset + " of " + end + ": " + result);
                }
                inbox.add(result.getMsgFoundList());
                offset = result.getNextBeginOffset();
            }
        }
        return inbox;
    }

    long storedCount(String topic) throws Exception {
        long count = 0;
        for (MessageQueue queue : queues(topic)) {
            count += producer().maxOffset(queue) - producer().minOffset(queue);
        }
        return count;
    }

    private void configure(ClientConfig client) {
        client.setNamesrvAddr(namesrv);
        client.setMqClientApiTimeout(10_000);
        // A 5.x client skips a heartbeat when another of its threads is sending one; its pulls are then refused as newer
        // than the subscription the broker knows, until the next heartbeat. The default of 30 s only makes that slow.
        client.setHeartbeatBrokerInterval(3_000);
        // Each client gets connections and a client id of its own, as if it ran in a process of its own.
        client.setInstanceName("interop-" + ProcessHandle.current().pid() + "-" + INSTANCES.incrementAndGet());
    }

    @Override
    public void close() {
        while (!closers.isEmpty()) {
            try {
                closers.pop().run();
            } catch (RuntimeException e) {
                report.note("shutting a client down: " + e);
            }
        }
    }
}
