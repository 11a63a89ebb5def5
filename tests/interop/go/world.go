package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

var instances atomic.Int64

// world holds the clients, topics and groups of one scenario. What it hands out is shut down when it is closed. Its
// functions panic on what no scenario expects; the panic is the scenario's failure.
type world struct {
	namesrv, runID, scenario string
	// Addresses of the brokers by their names.
	places  map[string]string
	report  *report
	closers []func()
	sender  rocketmq.Producer
	// Asks for the ends of queues.
	reader rocketmq.PullConsumer
}

func must(err error, what string) {
	if err != nil {
		panic(what + ": " + err.Error())
	}
}

// name gives a name that no other scenario or run uses, fit for a topic or a group.
func (w *world) name(suffix string) string { return "go-" + w.runID + "-" + w.scenario + "-" + suffix }

func (w *world) check(name string, holds bool, why any) {
	w.report.check(w.scenario+"."+name, holds, why)
}

func (w *world) close() {
	for len(w.closers) > 0 {
		last := len(w.closers) - 1
		closer := w.closers[last]
		w.closers = w.closers[:last]
		closer()
	}
}

// instance makes each client one of its own, as if it ran in a process of its own.
func instance() string { return fmt.Sprintf("interop-%d", instances.Add(1)) }

func newProducer(namesrv, group string, options ...producer.Option) (rocketmq.Producer, error) {
	// A retried send may store a message twice; these tests count copies, and a failed send is a finding.
	all := append([]producer.Option{
		producer.WithNameServer([]string{namesrv}), producer.WithGroupName(group), producer.WithInstanceName(instance()),
		producer.WithRetry(0), producer.WithSendMsgTimeout(10 * time.Second),
	}, options...)
	made, err := rocketmq.NewProducer(all...)
	if err != nil {
		return nil, err
	}
	return made, made.Start()
}

// producer gives the scenario's own, which sends to the queue that a message names.
func (w *world) producer() rocketmq.Producer {
	if w.sender == nil {
		w.sender = w.producerWith(producer.WithQueueSelector(producer.NewManualQueueSelector()))
	}
	return w.sender
}

func (w *world) producerWith(options ...producer.Option) rocketmq.Producer {
	made, err := newProducer(w.namesrv, w.name("p"), options...)
	must(err, "a producer starts")
	w.closers = append(w.closers, func() { _ = made.Shutdown() })
	return made
}

// probe finds the brokers of the cluster: a topic made by its first message goes to all of them in turn, and the ids of
// its messages name their addresses. A client that refreshes its route just after the first message knows only the broker that
// this one went to, and goes on with another topic then.
func probe(namesrv, runID string) (map[string]string, error) {
	sender, err := newProducer(namesrv, "go-"+runID+"-probe")
	if err != nil {
		return nil, err
	}
	defer func() { _ = sender.Shutdown() }()
	tool, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver([]string{namesrv})))
	if err != nil {
		return nil, err
	}
	queues, err := tool.FetchPublishMessageQueues(context.Background(), "TBW102")
	if err != nil {
		return nil, err
	}
	brokers, places := map[string]bool{}, map[string]string{}
	for _, queue := range queues {
		brokers[queue.BrokerName] = true
	}
	for sends := 0; len(places) < len(brokers); sends++ {
		if sends == 640 {
			return nil, fmt.Errorf("no message went to one of %v, but only to %v", brokers, places)
		}
		topic := fmt.Sprintf("go-%s-probe-%d", runID, sends/64)
		sent, err := sender.SendSync(context.Background(), primitive.NewMessage(topic, []byte("where")))
		if err != nil {
			return nil, err
		}
		id, err := primitive.UnmarshalMsgID([]byte(sent.OffsetMsgID))
		if err != nil {
			return nil, err
		}
		places[sent.MessageQueue.BrokerName] = fmt.Sprintf("%s:%d", id.Addr, id.Port)
	}
	return places, nil
}

func (w *world) admin() admin.Admin {
	made, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver([]string{w.namesrv})))
	must(err, "an admin client starts")
	return made
}

// createTopic makes a topic with these many queues on each broker, and waits until the route shows them all.
func (w *world) createTopic(topic string, queuesPerBroker int) []*primitive.MessageQueue {
	tool := w.admin()
	for broker, address := range w.places {
		err := tool.CreateTopic(context.Background(), admin.WithTopicCreate(topic), admin.WithBrokerAddrCreate(address),
			admin.WithReadQueueNums(queuesPerBroker), admin.WithWriteQueueNums(queuesPerBroker))
		must(err, "topic "+topic+" on "+broker)
	}
	return w.awaitQueues(topic, len(w.places)*queuesPerBroker)
}

// tool runs RingMQ's own tool for what no client can do, and gives what it prints.
func (w *world) tool(arguments ...string) []byte {
	command := exec.Command(os.Getenv("INTEROP_TOOL"), append([]string{"--namesrv", w.namesrv}, arguments...)...)
	printed, err := command.Output()
	if failed, ok := err.(*exec.ExitError); ok {
		panic(fmt.Sprintf("%v: %s", command.Args, failed.Stderr))
	}
	must(err, "the tool runs")
	return printed
}

func (w *world) awaitQueues(topic string, wanted int) []*primitive.MessageQueue {
	tool := w.admin()
	var queues []*primitive.MessageQueue
	if !until(func() bool { queues = w.queues(tool, topic); return len(queues) == wanted }) {
		panic(fmt.Sprintf("the route of %s does not show %d queues but %v", topic, wanted, queues))
	}
	return queues
}

func (w *world) queues(tool admin.Admin, topic string) []*primitive.MessageQueue {
	queues, err := tool.FetchPublishMessageQueues(context.Background(), topic)
	if err != nil {
		return nil
	}
	sort.Slice(queues, func(a, b int) bool { return queueName(queues[a]) < queueName(queues[b]) })
	return queues
}

func queueName(queue *primitive.MessageQueue) string {
	return fmt.Sprintf("%s-%04d", queue.BrokerName, queue.QueueId)
}

func message(topic, tag, key string) *primitive.Message {
	m := primitive.NewMessage(topic, []byte("body of "+key)).WithKeys([]string{key})
	if tag != "" {
		m.WithTag(tag)
	}
	return m
}

func (w *world) send(m *primitive.Message) *primitive.SendResult {
	sent, err := w.producer().SendSync(context.Background(), m)
	must(err, "a send")
	if sent.Status != primitive.SendOK {
		panic(fmt.Sprintf("a send was answered with %v", sent))
	}
	return sent
}

// sendTo sends messages with the keys prefix0, prefix1 … to the queues in turn, and gives the keys.
func (w *world) sendTo(queues []*primitive.MessageQueue, tag, prefix string, count int) []string {
	var keys []string
	for i := range count {
		queue := queues[i%len(queues)]
		m := message(queue.Topic, tag, fmt.Sprintf("%s%d", prefix, i))
		m.Queue = queue
		w.send(m)
		keys = append(keys, key(m))
	}
	return keys
}

// sendFence sends a message to each queue: when they have arrived, all before them has.
func (w *world) sendFence(queues []*primitive.MessageQueue, tag, mark string) []string {
	return w.sendTo(queues, tag, "fence-"+mark+"-", len(queues))
}

func key(m *primitive.Message) string { return strings.TrimSpace(m.GetKeys()) }

type handler = func(context.Context, ...*primitive.MessageExt) (consumer.ConsumeResult, error)

// push gives a running consumer that begins with the first message.
func (w *world) push(group, topic string, selector consumer.MessageSelector, handle handler, options ...consumer.Option) rocketmq.PushConsumer {
	all := append([]consumer.Option{
		consumer.WithNameServer([]string{w.namesrv}), consumer.WithGroupName(group), consumer.WithInstance(instance()),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset), consumer.WithConsumeGoroutineNums(4),
		consumer.WithRebalanceLockInterval(time.Second),
	}, options...)
	made, err := rocketmq.NewPushConsumer(all...)
	must(err, "a push consumer is made")
	must(made.Subscribe(topic, selector, handle), "a subscription")
	must(made.Start(), "a push consumer starts")
	w.closers = append(w.closers, func() { _ = made.Shutdown() })
	return made
}

func (w *world) pushInto(in *inbox, group, topic, tags string, options ...consumer.Option) rocketmq.PushConsumer {
	return w.push(group, topic, byTags(tags), in.take, options...)
}

func byTags(expression string) consumer.MessageSelector {
	return consumer.MessageSelector{Type: consumer.TAG, Expression: expression}
}

// until asks again until the condition holds or patience is over.
func until(holds func() bool) bool { return within(patience, holds) }

// within is for what takes longer by its nature.
func within(most time.Duration, holds func() bool) bool {
	deadline := time.Now().Add(most)
	for !holds() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}

// arrival is a message as a handler was given it; the client changes a message's topic on the way.
type arrival struct {
	key, queue string
	offset     int64
	message    *primitive.MessageExt
	at         time.Time
}

// inbox is what consumers were given, in the order in which they were.
type inbox struct {
	mutex    sync.Mutex
	arrivals []arrival
}

func (in *inbox) take(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	in.add(batch)
	return consumer.ConsumeSuccess, nil
}

func (in *inbox) add(batch []*primitive.MessageExt) {
	in.mutex.Lock()
	defer in.mutex.Unlock()
	for _, m := range batch {
		in.arrivals = append(in.arrivals, arrival{key(&m.Message), queueName(m.Queue), m.QueueOffset, m, time.Now()})
	}
}

// orderlyInbox counts besides how often a queue had more than one batch in hand.
type orderlyInbox struct {
	inbox
	inHand   sync.Map
	overlaps atomic.Int32
}

func (in *orderlyInbox) take(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	queue := queueName(batch[0].Queue)
	if _, isInHand := in.inHand.LoadOrStore(queue, true); isInHand {
		in.overlaps.Add(1)
	}
	in.add(batch)
	in.inHand.Delete(queue)
	return consumer.ConsumeSuccess, nil
}

func (in *inbox) all() []arrival {
	in.mutex.Lock()
	defer in.mutex.Unlock()
	return slices.Clone(in.arrivals)
}

// offsets gives those of each queue, in the order in which they arrived.
func (in *inbox) offsets() map[string][]int64 {
	offsets := map[string][]int64{}
	for _, a := range in.all() {
		offsets[a.queue] = append(offsets[a.queue], a.offset)
	}
	return offsets
}

func (in *inbox) counts() map[string]int {
	counts := map[string]int{}
	for _, a := range in.all() {
		counts[a.key]++
	}
	return counts
}

// lacks gives those of the keys that have not arrived.
func (in *inbox) lacks(keys []string) []string {
	counts := in.counts()
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return counts[k] > 0 })
}

func (in *inbox) await(keys []string) bool {
	return until(func() bool { return len(in.lacks(keys)) == 0 })
}

// difference names what is missing, repeated or unexpected; empty if each key arrived once.
func (in *inbox) difference(keys []string) string {
	counts := in.counts()
	var repeated, unexpected []string
	for k, count := range counts {
		if count > 1 {
			repeated = append(repeated, k)
		}
		if !slices.Contains(keys, k) {
			unexpected = append(unexpected, k)
		}
	}
	text := ""
	for what, found := range map[string][]string{"missing": in.lacks(keys), "repeated": repeated, "unexpected": unexpected} {
		if len(found) > 0 {
			slices.Sort(found)
			text += fmt.Sprintf("%d %s %v ", len(found), what, found)
		}
	}
	return text
}

// disorder names the queues whose offsets did not arrive in order.
func (in *inbox) disorder() string {
	last, text := map[string]int64{}, ""
	for _, a := range in.all() {
		if before, seen := last[a.queue]; seen && a.offset <= before {
			text += fmt.Sprintf("%s: %d after %d; ", a.queue, a.offset, before)
		}
		last[a.queue] = a.offset
	}
	return text
}
