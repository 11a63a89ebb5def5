package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

func pushConcurrent(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 4)
	keys := w.sendTo(queues, "T", "before-", 100)
	in := &inbox{}
	w.pushInto(in, w.name("g"), topic, "*")
	w.check("sent_before_start_arrives", in.await(keys), in.lacks(keys))
	for round := range 3 {
		more := w.sendTo(queues, "T", fmt.Sprintf("held-%d-", round), len(queues))
		w.check(fmt.Sprintf("held_pull_wakes.%d", round), in.await(more), in.lacks(more))
		keys = append(keys, more...)
	}
	keys = append(keys, w.sendTo(queues, "T", "after-", 200)...)
	keys = append(keys, w.sendFence(queues, "T", "end")...)
	w.check("sent_while_running_arrives", in.await(keys), in.lacks(keys))
	w.close()
	w.check("each_once", in.difference(keys) == "", in.difference(keys))
}

func pushTags(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	// "AaTag" and "BBTag" have the same hash code: telling them apart takes the client's second look.
	accepted := map[string][]string{
		"TagA || TagB": {"TagA", "TagB"}, "TagC": {"TagC"}, "AaTag": {"AaTag"},
		"*": {"TagA", "TagB", "TagC", "AaTag", "BBTag"},
	}
	inboxes, expected := map[string]*inbox{}, map[string][]string{}
	number := 0
	for expression := range accepted {
		inboxes[expression] = &inbox{}
		w.pushInto(inboxes[expression], w.name(fmt.Sprintf("g%d", number)), topic, expression)
		number++
	}
	for _, tag := range accepted["*"] {
		keys := append(w.sendTo(queues, tag, tag+"-", 20), w.sendFence(queues, tag, tag)...)
		for expression, tags := range accepted {
			if slices.Contains(tags, tag) {
				expected[expression] = append(expected[expression], keys...)
			}
		}
	}
	for expression, in := range inboxes {
		in.await(expected[expression])
	}
	w.close()
	for expression, in := range inboxes {
		difference := in.difference(expected[expression])
		w.check("subscribed to "+expression, difference == "", difference)
	}
}

func pushSQL(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	in := &inbox{}
	selector := consumer.MessageSelector{Type: consumer.SQL92, Expression: "(weight BETWEEN 10 AND 19 AND colour <> 'red') OR TAGS = 'always'"}
	w.push(w.name("g"), topic, selector, in.take)
	var expected []string
	for i := range 60 {
		colour, tag := []string{"red", "blue"}[i%2], []string{"seldom", "always"}[(i/30)*(i%10/9)]
		m := message(topic, tag, fmt.Sprintf("k%d", i))
		m.WithProperty("weight", fmt.Sprint(i))
		m.WithProperty("colour", colour)
		m.Queue = queues[i%len(queues)]
		w.send(m)
		if i >= 10 && i <= 19 && colour == "blue" || tag == "always" {
			expected = append(expected, key(m))
		}
	}
	expected = append(expected, w.sendFence(queues, "always", "end")...)
	w.check("selected_arrive", in.await(expected), in.lacks(expected))
	w.close()
	w.check("and_nothing_else", in.difference(expected) == "", in.difference(expected))
}

func pushBroadcast(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	inboxes := []*inbox{{}, {}}
	for i, in := range inboxes {
		// The client keeps broadcasting offsets in files named after the instance.
		w.pushInto(in, w.name("g"), topic, "*", consumer.WithConsumerModel(consumer.BroadCasting),
			consumer.WithInstance(fmt.Sprintf("%s-%d", w.name("i"), i)))
	}
	keys := append(w.sendTo(queues, "T", "k", 60), w.sendFence(queues, "T", "end")...)
	for _, in := range inboxes {
		in.await(keys)
	}
	w.close()
	for i, in := range inboxes {
		w.check(fmt.Sprintf("consumer_%d_gets_each_once", i), in.difference(keys) == "", in.difference(keys))
	}
}

// Order within each queue, one message of a queue at a time; a second consumer goes on where the first left off.
func pushOrderly(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	in := &orderlyInbox{}
	var keys []string
	for turn := range 2 {
		keys = append(keys, w.sendTo(queues, "T", fmt.Sprintf("%d-before-", turn), 60)...)
		running := w.push(w.name("g"), topic, byTags("*"), in.take, consumer.WithConsumerOrder(true))
		keys = append(keys, w.sendTo(queues, "T", fmt.Sprintf("%d-while-", turn), 60)...)
		keys = append(keys, w.sendFence(queues, "T", fmt.Sprintf("end-%d", turn))...)
		w.check(fmt.Sprintf("all_arrive.%d", turn), in.await(keys), in.lacks(keys))
		w.stop(running, w.name("g"), topic, queues)
	}
	w.check("each_once", in.difference(keys) == "", in.difference(keys))
	w.check("one_at_a_time_per_queue", in.overlaps.Load() == 0, in.overlaps.Load())
	w.check("order_within_queue", in.disorder() == "", in.disorder())
}

// A message that is suspended comes again, with nothing of its queue between.
func orderlySuspend(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 1)
	in := &inbox{}
	var mutex sync.Mutex
	tries := map[string]int{}
	handle := func(ctx context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		in.add(batch)
		mutex.Lock()
		defer mutex.Unlock()
		k := key(&batch[0].Message)
		tries[k]++
		if slices.Contains([]string{"k4", "k5"}, k) && tries[k] <= 2 {
			if orderly, ok := primitive.GetOrderlyCtx(ctx); ok {
				orderly.SuspendCurrentQueueTimeMillis = 50
			}
			return consumer.SuspendCurrentQueueAMoment, nil
		}
		return consumer.ConsumeSuccess, nil
	}
	keys := w.sendTo(queues, "T", "k", 20)
	w.push(w.name("g"), topic, byTags("*"), handle, consumer.WithConsumerOrder(true))
	w.check("all_arrive", in.await(keys), in.lacks(keys))
	arrived := map[string][]string{}
	for _, a := range in.all() {
		arrived[a.queue] = append(arrived[a.queue], a.key)
	}
	want := map[string][]string{}
	for i, k := range keys {
		count := 1
		if k == "k4" || k == "k5" {
			count = 3
		}
		name := queueName(queues[i%len(queues)])
		for range count {
			want[name] = append(want[name], k)
		}
	}
	w.check("suspended_come_again_in_place", fmt.Sprint(arrived) == fmt.Sprint(want), arrived)
}

func (w *world) puller(group, topic string) rocketmq.PullConsumer {
	made, err := rocketmq.NewPullConsumer(consumer.WithNameServer([]string{w.namesrv}), consumer.WithGroupName(group),
		consumer.WithInstance(instance()))
	must(err, "a pull consumer is made")
	must(made.Subscribe(topic, byTags("*")), "a subscription")
	must(made.Start(), "a pull consumer starts")
	w.closers = append(w.closers, func() { _ = made.Shutdown() })
	return made
}

func pull(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 1)[:1]
	reader := w.puller(w.name("g"), topic)
	at := func(offset int64, count int) *primitive.PullResult {
		queue := *queues[0]
		result, err := reader.PullFrom(context.Background(), &queue, offset, count)
		must(err, "a pull")
		return result
	}
	keys := w.sendTo(queues, "T", "k", 10)
	found := at(3, 4)
	in := &inbox{}
	in.add(found.GetMessageExts())
	w.check("found", found.Status == primitive.PullFound && found.NextBeginOffset == 7 && found.MaxOffset == 10 &&
		in.difference(keys[3:7]) == "", fmt.Sprint(*found))
	illegal := at(100, 4)
	w.check("beyond_the_end", illegal.Status == primitive.PullOffsetIllegal && illegal.NextBeginOffset == 10, fmt.Sprint(*illegal))
	// This pull is held until a message comes.
	answer := make(chan *primitive.PullResult, 1)
	go func() { answer <- at(10, 4) }()
	more := w.sendTo(queues, "T", "late-", 1)
	woken := <-answer
	in = &inbox{}
	in.add(woken.GetMessageExts())
	w.check("held_pull_wakes", woken.Status == primitive.PullFound && in.difference(more) == "", fmt.Sprint(*woken))
}

func poll(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	group := w.name("g")
	first, second := &inbox{}, &inbox{}
	drain := func(in *inbox, keys []string) {
		reader := w.puller(group, topic)
		until(func() bool {
			if request, err := reader.Poll(context.Background(), time.Second); err == nil {
				in.add(request.GetMsgList())
				reader.ACK(context.Background(), request, consumer.ConsumeSuccess)
			}
			return len(in.lacks(keys)) == 0
		})
		must(reader.Shutdown(), "a shutdown")
		w.settle(group, topic, queues)
	}
	keys := w.sendTo(queues, "T", "k", 40)
	drain(first, keys)
	w.check("polls_all_once", first.difference(keys) == "", first.difference(keys))
	more := w.sendTo(queues, "T", "more-", 20)
	drain(second, more)
	w.check("goes_on_where_acknowledged", second.difference(more) == "", second.difference(more))
}

// stop ends a push consumer that was given everything, once its handler has said so, and waits until the broker knows.
func (w *world) stop(running rocketmq.PushConsumer, group, topic string, queues []*primitive.MessageQueue) {
	// A consumer that is shut down commits what was handled before that.
	until(func() bool { return running.GetOffsetDiffMap()[topic] == 0 })
	must(running.Shutdown(), "a shutdown")
	w.settle(group, topic, queues)
}

// settle waits until the group, which has no other members, has committed the end of each queue.
func (w *world) settle(group, topic string, queues []*primitive.MessageQueue) {
	offsets := map[string]int64{}
	isSettled := until(func() bool {
		// A consumer asks the broker once for an offset.
		asks := w.puller(group, topic)
		defer func() { _ = asks.Shutdown() }()
		for _, queue := range queues {
			of := *queue
			offset, err := asks.CurrentOffset(&of)
			must(err, "an offset")
			offsets[queueName(queue)] = offset
			if offset != w.end(queue) {
				return false
			}
		}
		return true
	})
	if !isSettled {
		panic(fmt.Sprintf("the offsets of %s do not reach the ends of its queues: %v", group, offsets))
	}
}

// retryReady makes the group's retry topic known before its consumer starts: the client looks for a route that was
// missing when it started only every 30 s, and reads the queues of a new one up to 20 s later.
func (w *world) retryReady(group, topic string) {
	first := w.pushInto(&inbox{}, group, topic, "*")
	w.awaitOnAll("%RETRY%"+group, topic)
	must(first.Shutdown(), "a shutdown")
}

// awaitOnAll waits until all brokers have a topic, like all have another one already. To look for its route will not do: the client
// keeps the first one that it is told, though it may be that of one broker only.
func (w *world) awaitOnAll(topic, known string) {
	asks := w.puller(w.name("asks-for-"+topic[1:4]), known)
	for broker := range w.places {
		until(func() bool {
			// Far behind the end: this is answered at once.
			_, err := asks.PullFrom(context.Background(), &primitive.MessageQueue{Topic: topic, BrokerName: broker}, 1<<40, 1)
			return err == nil
		})
	}
}

// What is refused comes again, later, with a count, as if from its own topic.
func retry(w *world) {
	topic, group := w.name("t"), w.name("g")
	queues := w.createTopic(topic, 2)
	w.retryReady(group, topic)
	in := &inbox{}
	var mutex sync.Mutex
	var wrong []string
	handle := func(ctx context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		m := batch[0]
		in.add(batch)
		mutex.Lock()
		defer mutex.Unlock()
		if m.Topic != topic || string(m.Body) != "body of "+key(&m.Message) || m.GetTags() != "T" {
			wrong = append(wrong, m.String())
		}
		// Every third message is refused twice.
		var number int
		if _, err := fmt.Sscanf(key(&m.Message), "k%d", &number); err == nil && number%3 == 0 && m.ReconsumeTimes < 2 {
			if concurrent, ok := primitive.GetConcurrentlyCtx(ctx); ok {
				concurrent.DelayLevelWhenNextConsume = 1
			}
			return consumer.ConsumeRetryLater, nil
		}
		return consumer.ConsumeSuccess, nil
	}
	w.push(group, topic, byTags("*"), handle)
	keys := w.sendTo(queues, "T", "k", 12)
	until(func() bool { return len(in.all()) >= 12+2*4 })
	tries := map[string][]int32{}
	times := map[string][]time.Time{}
	for _, a := range in.all() {
		tries[a.key] = append(tries[a.key], a.message.ReconsumeTimes)
		times[a.key] = append(times[a.key], a.at)
	}
	good, early := len(tries) == len(keys), false
	for i, k := range keys {
		want := []int32{0}
		if i%3 == 0 {
			want = []int32{0, 1, 2}
		}
		good = good && slices.Equal(tries[k], want)
		for n := 1; n < len(times[k]); n++ {
			early = early || times[k][n].Sub(times[k][n-1]) < time.Second
		}
	}
	w.check("each_as_often_as_refused", good, tries)
	w.check("not_before_its_delay", !early, times)
	w.check("with_its_own_topic_tag_and_body", len(wrong) == 0, wrong)
}

// What is refused each time becomes a dead letter when it has been retried as often as it may.
func dlq(w *world) {
	topic, group := w.name("t"), w.name("g")
	queues := w.createTopic(topic, 2)
	w.retryReady(group, topic)
	in := &inbox{}
	handle := func(ctx context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		in.add(batch)
		if concurrent, ok := primitive.GetConcurrentlyCtx(ctx); ok {
			concurrent.DelayLevelWhenNextConsume = 1
		}
		return consumer.ConsumeRetryLater, nil
	}
	w.push(group, topic, byTags("*"), handle, consumer.WithMaxReconsumeTimes(2))
	keys := w.sendTo(queues, "T", "k", 8)
	var others []string
	until(func() bool {
		others = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return in.counts()[k] == 3 })
		return len(others) == 0
	})
	dead := "%DLQ%" + group
	w.awaitOnAll(dead, topic)
	letters := &inbox{}
	w.pushInto(letters, w.name("undertaker"), dead, "*")
	w.check("all_are_dead", letters.await(keys), letters.lacks(keys))
	w.close()
	w.check("each_once", letters.difference(keys) == "", letters.difference(keys))
	w.check("consumed_three_times", len(others) == 0 && len(in.all()) == 3*len(keys), in.counts())
	var wrong []string
	for _, a := range letters.all() {
		m := a.message
		if m.ReconsumeTimes != 3 || string(m.Body) != "body of "+a.key || m.GetTags() != "T" || m.GetProperty("RETRY_TOPIC") != topic {
			wrong = append(wrong, m.String())
		}
	}
	w.check("what_they_were", len(wrong) == 0, wrong)
}

func delay(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	in := &inbox{}
	w.pushInto(in, w.name("g"), topic, "*")
	delays := map[int]time.Duration{1: time.Second, 2: 5 * time.Second}
	due := map[string]time.Time{}
	var keys []string
	for i := range 20 {
		level := 1 + i%2
		m := message(topic, "T", fmt.Sprintf("k%d", i)).WithDelayTimeLevel(level)
		m.Queue = queues[i%len(queues)]
		due[key(m)] = time.Now().Add(delays[level])
		w.send(m)
		keys = append(keys, key(m))
	}
	w.check("all_arrive", in.await(keys), in.lacks(keys))
	w.close()
	w.check("each_once", in.difference(keys) == "", in.difference(keys))
	var early, elsewhere []string
	for i, k := range keys {
		for _, a := range in.all() {
			if a.key == k && a.at.Before(due[k]) {
				early = append(early, k)
			}
			if a.key == k && (a.message.Topic != topic || a.queue != queueName(queues[i%len(queues)])) {
				elsewhere = append(elsewhere, k)
			}
		}
	}
	w.check("not_before_they_are_due", len(early) == 0, early)
	w.check("in_their_own_queues", len(elsewhere) == 0, elsewhere)
}

// A group that is new to a topic: where it begins. On a topic from which nothing was deleted yet RocketMQ lets it begin with
// the first message, whatever the consumer asks for; a group with offsets goes on from them.
func consumeFrom(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 1)
	before := w.sendTo(queues, "T", "before-", 20)
	rules := map[string]consumer.Option{
		"first":     consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		"last":      consumer.WithConsumeFromWhere(consumer.ConsumeFromLastOffset),
		"timestamp": consumer.WithConsumeFromWhere(consumer.ConsumeFromTimestamp),
	}
	for rule, option := range rules {
		in := &inbox{}
		first := w.pushInto(in, w.name(rule), topic, "*", option)
		w.check(rule+".new_group_of_a_young_topic_begins_with_the_first_message", in.await(before), in.lacks(before))
		w.stop(first, w.name(rule), topic, queues)
	}
	after := w.sendTo(queues, "T", "after-", 10)
	for rule, option := range rules {
		in := &inbox{}
		w.pushInto(in, w.name(rule), topic, "*", option)
		in.await(after)
		w.check(rule+".known_group_goes_on", in.difference(after) == "", in.difference(after))
	}
}

// How long the messages of a topic live that loses its beginning: longer than the client takes to begin (it sleeps 10 s when its first
// pull was of what is gone, and looks for its queues every 20 s).
const age = 40 * time.Second

// A topic that has lost its beginning: there a new group begins as it asks, with the first message that is left, behind the
// last one, or with the first one since a time; and goes on from there without a gap.
func consumeFromAged(w *world) {
	topic := w.name("t")
	w.tool("topic", "create", topic, "--queues", "1", "--retention", age.String())
	queues := w.awaitQueues(topic, len(w.places))
	begins := func() []int64 { first, _ := w.bounds(queues); return first }
	ends := func() []int64 { _, behind := w.bounds(queues); return behind }
	w.sendTo(queues, "T", "lost-", 20)
	lost := ends()
	w.check("topic_loses_its_beginning", within(2*age, func() bool { return slices.Equal(begins(), lost) }), lost)
	w.sendTo(queues, "T", "left-", 20)
	// A consumer's time is in whole seconds, and the broker's clock is not quite this one.
	moment := time.Now().Truncate(time.Second).Add(2 * time.Second)
	until(func() bool { return time.Since(moment) > time.Second })
	since := ends()
	w.sendTo(queues, "T", "since-", 20)

	firstLeft, present := begins(), ends()
	rules := map[string][]consumer.Option{
		"first": {consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset)},
		"last":  {consumer.WithConsumeFromWhere(consumer.ConsumeFromLastOffset)},
		// The client reads it as a time of UTC.
		"timestamp": {consumer.WithConsumeFromWhere(consumer.ConsumeFromTimestamp), consumer.WithConsumeTimestamp(moment.UTC().Format("20060102150405"))},
	}
	inboxes := map[string]*inbox{}
	for rule, options := range rules {
		inboxes[rule] = &inbox{}
		w.pushInto(inboxes[rule], w.name(rule), topic, "*", options...)
	}
	next := time.Now()
	until(func() bool {
		if time.Now().After(next) {
			w.sendFence(queues, "T", next.String())
			next = next.Add(time.Second)
		}
		for _, in := range inboxes {
			if len(in.offsets()) < len(queues) {
				return false
			}
		}
		return true
	})
	firstLeftLater := begins()
	last := w.sendFence(queues, "T", "end")
	for _, in := range inboxes {
		in.await(last)
	}
	presentLater := ends()
	w.close()
	for rule, in := range inboxes {
		var wrong, gaps []string
		for i, queue := range queues {
			given := in.offsets()[queueName(queue)]
			slices.Sort(given)
			// Where it had to begin, if it was slow: messages go on going.
			var from, to int64
			switch rule {
			case "first":
				from, to = firstLeft[i], firstLeftLater[i]
			case "last":
				from, to = present[i], presentLater[i]
			case "timestamp":
				from, to = max(since[i], firstLeft[i]), max(since[i], firstLeftLater[i])
			}
			if len(given) == 0 || given[0] < from || given[0] > to {
				wrong = append(wrong, fmt.Sprintf("%s: %v, not from %d to %d on", queueName(queue), given, from, to))
			} else if int64(len(given)) != presentLater[i]-given[0] || given[len(given)-1] != presentLater[i]-1 || len(slices.Compact(given)) != len(given) {
				gaps = append(gaps, fmt.Sprintf("%s: %v", queueName(queue), given))
			}
		}
		w.check(rule+".begins_there", len(wrong) == 0, wrong)
		w.check(rule+".goes_on_without_a_gap", len(gaps) == 0, gaps)
	}
}

// A second consumer joins and leaves: the queues are split, and come back. What each owns shows in what it is given.
func rebalance(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 4)
	group := w.name("g")
	first, second := &inbox{}, &inbox{}
	round := 0
	// Sends a message to each queue until these many of a round go to the first and to the second consumer.
	reaches := func(ofFirst, ofSecond int) bool {
		return until(func() bool {
			round++
			keys := w.sendTo(queues, "T", fmt.Sprintf("round-%d-", round), len(queues))
			until(func() bool {
				return len(first.lacks(keys))+len(second.lacks(keys)) <= len(keys)
			})
			return len(keys)-len(first.lacks(keys)) == ofFirst && len(keys)-len(second.lacks(keys)) == ofSecond
		})
	}
	all := len(queues)
	w.pushInto(first, group, topic, "*")
	w.check("alone_gets_all", reaches(all, 0), first.counts())
	joins := w.pushInto(second, group, topic, "*")
	w.check("each_gets_half", reaches(all/2, all/2), second.counts())
	must(joins.Shutdown(), "a shutdown")
	w.check("alone_again_gets_all", reaches(all, 0), first.counts())
	both := &inbox{arrivals: append(first.all(), second.all()...)}
	var keys []string
	for r := 1; r <= round; r++ {
		for i := range queues {
			keys = append(keys, fmt.Sprintf("round-%d-%d", r, i))
		}
	}
	w.check("nothing_lost", len(both.lacks(keys)) == 0, both.lacks(keys))
}
