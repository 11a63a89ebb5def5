package ringmq.interop;

import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** POP: DefaultMQPushConsumer with clientRebalance=false, where the broker says which queues, and whether they are pulled or popped. */
final class Popping {
    /** Longer than a restart of the broker takes. */
    private static final int INVISIBLE_SECONDS = 20;

    private Popping() {
    }

    private static boolean cannotPop(World world) {
        if (method(DefaultMQPushConsumer.class, "setClientRebalance") == null) {
            world.report.note(world.scenario + ": this client has no POP, and always divides the queues itself");
            return true;
        }
        if (System.getProperty("rocketmq.serialize.type", "JSON").equals("ROCKETMQ")) {
            world.report.note(world.scenario + ": the codes of POP do not fit the 16 bits that this codec has for them");
            return true;
        }
        return false;
    }

    static void pop(World world) throws Exception {
        if (cannotPop(world)) {
            return;
        }
        Method clientRebalance = method(DefaultMQPushConsumer.class, "setClientRebalance");
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", 60));

        // Without a mode the queues are pulled.
        Inbox pulled = new Inbox();
        DefaultMQPushConsumer puller = world.push(world.name("pull"));
        clientRebalance.invoke(puller, false);
        puller.subscribe(topic, "*");
        puller.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            pulled.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        puller.start();
        pulled.awaitKeys(keys);
        world.report.equal(world.check("assigned_to_pull"), "", pulled.differenceFrom(keys));
        puller.shutdown();

        String group = world.name("pop");
        setPopMode(world, topic, group);
        // Every tenth message fails when it comes first; the client then asks for it again after 10 s.
        Set<String> failing = new HashSet<>();
        keys.stream().filter(key -> key.endsWith("0")).forEach(failing::add);
        Inbox inbox = new Inbox();
        Map<String, List<Integer>> tries = new ConcurrentHashMap<>();
        Set<String> withoutReceipt = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer popper = world.push(group);
        clientRebalance.invoke(popper, false);
        popper.setConsumeMessageBatchMaxSize(1);
        popper.subscribe(topic, "*");
        popper.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            MessageExt message = batch.get(0);
            if (message.getProperty("POP_CK") == null) {
                withoutReceipt.add(message.getKeys());
            }
            List<Integer> before = tries.computeIfAbsent(message.getKeys(), key -> new ArrayList<>());
            synchronized (before) {
                before.add(message.getReconsumeTimes());
                if (before.size() == 1 && failing.contains(message.getKeys())) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        popper.start();
        // Onto pops that wait.
        keys.addAll(world.sendTo(queues, "T", "later", 20));
        inbox.awaitKeys(keys);
        popper.shutdown();
        world.report.equal(world.check("each_succeeds_once"), "", inbox.differenceFrom(keys));
        world.report.check(world.check("all_were_popped"), withoutReceipt.isEmpty(), withoutReceipt.toString());
        Map<String, List<Integer>> unexpected = new TreeMap<>(tries);
        unexpected.entrySet().removeIf(of -> of.getValue().equals(failing.contains(of.getKey()) ? List.of(0, 1) : List.of(0)));
        world.report.equal(world.check("failed_ones_come_again_once"), "{}", unexpected.toString());
        Set<String> topics = new TreeSet<>();
        inbox.all().forEach(message -> topics.add(message.getTopic()));
        world.report.equal(world.check("topic_of_retries_is_the_original"), Set.of(topic).toString(), topics.toString());
    }

    /**
     * The broker is killed and started again while a consumer has popped messages in hand: it acknowledges them afterwards with the
     * receipts of before, and that counts; nothing is lost, and nothing comes twice when its time would be over.
     */
    static void restart(World world) throws Exception {
        if (cannotPop(world)) {
            return;
        }
        Method clientRebalance = method(DefaultMQPushConsumer.class, "setClientRebalance");
        String topic = world.name("t");
        String group = world.name("g");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "before-", 40));
        setPopMode(world, topic, group);
        CountDownLatch gate = new CountDownLatch(1);
        Set<String> inHand = ConcurrentHashMap.newKeySet();
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer popper = world.push(group);
        clientRebalance.invoke(popper, false);
        method(popper.getClass(), "setPopInvisibleTime").invoke(popper, INVISIBLE_SECONDS * 1_000L);
        popper.setConsumeMessageBatchMaxSize(1);
        popper.subscribe(topic, "*");
        popper.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            inHand.add(batch.get(0).getKeys());
            try {
                gate.await();
            } catch (InterruptedException e) {
                return ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        popper.start();
        boolean popped = Await.until(() -> inHand.size() == popper.getConsumeThreadMax());
        world.report.check(world.check("popped_before"), popped, inHand.toString());
        long begun = System.nanoTime();
        Consuming.restartBroker(world);
        Await.until(() -> keys.addAll(world.sendTo(queues, "T", "after-" + System.nanoTime() + "-", 10)));
        gate.countDown();
        world.report.check(world.check("all_arrive"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        // Until the time of all that was popped is over.
        Await.until(2 * INVISIBLE_SECONDS, () -> System.nanoTime() - begun > TimeUnit.SECONDS.toNanos(INVISIBLE_SECONDS + 5));
        keys.addAll(world.sendFence(topic, "T", "end"));
        inbox.awaitKeys(keys);
        popper.shutdown();
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(keys));
    }

    /**
     * Pops in order, as RocketMQ's proxy asks for them: through this client's API. Its push consumer cannot, as its service for popped
     * messages in order passes nothing on.
     */
    static void orderly(World world) throws Exception {
        if (cannotPop(world)) {
            return;
        }
        String topic = world.name("t");
        String group = world.name("g");
        Api api = new Api(world);
        for (MessageQueue queue : world.createTopic(topic, 1)) {
            String name = queue.getBrokerName() + ".";
            world.sendTo(List.of(queue), "T", "k", 6);
            List<MessageExt> first = api.pop(queue, group, "a", 3, 0);
            world.report.equal(world.check(name + "from_the_first_on"), List.of("k0", "k1", "k2"), keys(first));
            world.report.equal(world.check(name + "waits_for_what_is_in_flight"), List.of(), keys(api.pop(queue, group, "b", 3, 0)));
            List<MessageExt> same = api.pop(queue, group, "a", 3, 0);
            world.report.equal(world.check(name + "same_attempt_same_messages"), List.of("k0", "k1", "k2"), keys(same));
            for (MessageExt message : same) {
                api.ack(queue, group, message);
            }
            List<MessageExt> next = api.pop(queue, group, "c", 3, 0);
            world.report.equal(world.check(name + "goes_on_when_all_is_done"), List.of("k3", "k4", "k5"), keys(next));
            api.ack(queue, group, next.get(1));
            api.changeInvisible(queue, group, next.get(0), 1_000);
            api.changeInvisible(queue, group, next.get(2), 1_000);
            List<MessageExt> again = api.pop(queue, group, "d", 3, 15_000);
            world.report.equal(world.check(name + "what_was_not_done_comes_again"), List.of("k3", "k5"), keys(again));
            world.report.equal(world.check(name + "with_a_count"), List.of(1, 1), again.stream().map(MessageExt::getReconsumeTimes).toList());
            for (MessageExt message : again) {
                api.ack(queue, group, message);
            }
            world.report.equal(world.check(name + "nothing_is_left"), List.of(), keys(api.pop(queue, group, "e", 32, 0)));
        }
    }

    private static List<String> keys(List<MessageExt> messages) {
        return messages.stream().map(MessageExt::getKeys).toList();
    }

    /** What {@code mqadmin setConsumeMode} does: tells every broker of the topic. */
    private static void setPopMode(World world, String topic, String group) throws Exception {
        Class<?> modes = Class.forName("org.apache.rocketmq.common.message.MessageRequestMode");
        Object pop = Arrays.stream(modes.getEnumConstants()).filter(mode -> mode.toString().equals("POP")).findFirst().orElseThrow();
        Api api = new Api(world);
        for (String broker : world.brokers()) {
            api.call("setMessageRequestMode", api.address(broker), topic, group, pop, 0, 10_000L);
        }
    }

    private static Method method(Class<?> of, String name) {
        return Arrays.stream(of.getMethods()).filter(method -> method.getName().equals(name)).findFirst().orElse(null);
    }

    /** The API of a running client, by name, as classes and methods of POP are not in 4.9. */
    private static final class Api {
        private static final long TIMEOUT_MS = 30_000;
        private final Object factory;
        private final Object api;

        Api(World world) throws Exception {
            Object producer = world.producer().getDefaultMQProducerImpl();
            factory = method(producer.getClass(), "getMqClientFactory").invoke(producer);
            api = method(factory.getClass(), "getMQClientAPIImpl").invoke(factory);
        }

        /** Of a broker that the producer has sent to: none is taken for the name server's. */
        String address(String broker) throws Exception {
            return (String) Objects.requireNonNull(method(factory.getClass(), "findBrokerAddressInPublish").invoke(factory, broker));
        }

        Object call(String name, Object... arguments) throws Exception {
            Method called = Arrays.stream(api.getClass().getMethods())
                .filter(method -> method.getName().equals(name) && method.getParameterCount() == arguments.length).findFirst().orElseThrow();
            return called.invoke(api, arguments);
        }

        @SuppressWarnings("unchecked")
        List<MessageExt> pop(MessageQueue queue, String group, String attempt, int max, long pollMs) throws Exception {
            Object header = header("PopMessageRequestHeader", queue, group, Map.of("setMaxMsgNums", max, "setInvisibleTime", 60_000L,
                "setPollTime", pollMs, "setBornTime", System.currentTimeMillis(), "setOrder", true, "setAttemptId", attempt,
                "setExpType", "TAG", "setExp", "*"));
            Answer answer = new Answer("PopCallback");
            call("popMessageAsync", queue.getBrokerName(), address(queue.getBrokerName()), header, TIMEOUT_MS, answer.callback);
            Object result = answer.get();
            List<MessageExt> found = (List<MessageExt>) method(result.getClass(), "getMsgFoundList").invoke(result);
            return found == null ? List.of() : found;
        }

        void ack(MessageQueue queue, String group, MessageExt message) throws Exception {
            Answer answer = new Answer("AckCallback");
            call("ackMessageAsync", address(queue.getBrokerName()), TIMEOUT_MS, answer.callback,
                header("AckMessageRequestHeader", queue, group, receipt(message)));
            answer.ok();
        }

        void changeInvisible(MessageQueue queue, String group, MessageExt message, long invisibleMs) throws Exception {
            Map<String, Object> fields = new TreeMap<>(receipt(message));
            fields.put("setInvisibleTime", invisibleMs);
            Answer answer = new Answer("AckCallback");
            call("changeInvisibleTimeAsync", queue.getBrokerName(), address(queue.getBrokerName()),
                header("ChangeInvisibleTimeRequestHeader", queue, group, fields), TIMEOUT_MS, answer.callback);
            answer.ok();
        }

        private static Map<String, Object> receipt(MessageExt message) {
            return Map.of("setExtraInfo", message.getProperty("POP_CK"), "setOffset", message.getQueueOffset());
        }

        private static Object header(String name, MessageQueue queue, String group, Map<String, Object> fields) throws Exception {
            Object header = Class.forName("org.apache.rocketmq.remoting.protocol.header." + name).getConstructor().newInstance();
            Map<String, Object> all = new TreeMap<>(fields);
            all.putAll(Map.of("setTopic", queue.getTopic(), "setQueueId", queue.getQueueId(), "setConsumerGroup", group));
            for (Map.Entry<String, Object> field : all.entrySet()) {
                method(header.getClass(), field.getKey()).invoke(header, field.getValue());
            }
            return header;
        }
    }

    /** What a callback of the client is called with. */
    private static final class Answer {
        private final CompletableFuture<Object> future = new CompletableFuture<>();
        final Object callback;

        Answer(String type) throws ClassNotFoundException {
            Class<?> callbackType = Class.forName("org.apache.rocketmq.client.consumer." + type);
            callback = Proxy.newProxyInstance(callbackType.getClassLoader(), new Class<?>[] {callbackType}, (proxy, called, arguments) ->
                called.getName().equals("onSuccess") ? future.complete(arguments[0])
                    : called.getName().equals("onException") ? future.completeExceptionally((Throwable) arguments[0])
                    : called.invoke(this, arguments));
        }

        Object get() throws Exception {
            return future.get(Await.SECONDS, TimeUnit.SECONDS);
        }

        void ok() throws Exception {
            Object result = get();
            Object status = method(result.getClass(), "getStatus").invoke(result);
            if (!status.toString().equals("OK")) {
                throw new IllegalStateException("refused: " + result);
            }
        }
    }
}
