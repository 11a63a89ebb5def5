package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"

	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// stored reads these many messages from each queue of a topic. A pull at the end of a queue waits for the next one.
func (w *world) stored(topic string, queues []*primitive.MessageQueue, perQueue int64) *inbox {
	reader := w.puller(w.name("reader"), topic)
	in := &inbox{}
	for _, queue := range queues {
		for next := int64(0); next < perQueue; {
			of := *queue
			result, err := reader.PullFrom(context.Background(), &of, next, 32)
			must(err, "a pull")
			in.add(result.GetMessageExts())
			next = result.NextBeginOffset
		}
	}
	return in
}

func producerSync(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	var wrong []string
	results := map[string]*primitive.SendResult{}
	next := map[string]int64{}
	for i := range 100 {
		m := message(topic, "T", fmt.Sprintf("k%d", i))
		m.Queue = queues[i%len(queues)]
		sent := w.send(m)
		name := queueName(sent.MessageQueue)
		if name != queueName(m.Queue) || sent.QueueOffset != next[name] {
			wrong = append(wrong, sent.String())
		}
		next[name]++
		results[key(m)] = sent
	}
	w.check("answers_name_queue_and_offset", len(wrong) == 0, wrong)
	in := w.stored(topic, queues, int64(100/len(queues)))
	var elsewhere []string
	for _, a := range in.all() {
		sent := results[a.key]
		if sent == nil || a.queue != queueName(sent.MessageQueue) || a.offset != sent.QueueOffset ||
			a.message.MsgId != sent.MsgID || a.message.OffsetMsgId != sent.OffsetMsgID {
			elsewhere = append(elsewhere, a.key)
		}
	}
	w.check("stored_where_answered", len(elsewhere) == 0 && len(in.all()) == 100, elsewhere)
}

func producerAsync(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	var keys []string
	answers := make(chan error, 300)
	for i := range 300 {
		m := message(topic, "T", fmt.Sprintf("k%d", i))
		m.Queue = queues[i%len(queues)]
		keys = append(keys, key(m))
		must(w.producer().SendAsync(context.Background(), func(_ context.Context, _ *primitive.SendResult, err error) {
			answers <- err
		}, m), "an asynchronous send")
	}
	var wrong []string
	for range keys {
		if err := <-answers; err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	w.check("all_answered", len(wrong) == 0, wrong)
	difference := w.stored(topic, queues, int64(300/len(queues))).difference(keys)
	w.check("each_stored_once", difference == "", difference)
}

func producerOneway(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	var keys []string
	for i := range 200 {
		m := message(topic, "T", fmt.Sprintf("k%d", i))
		m.Queue = queues[i%len(queues)]
		keys = append(keys, key(m))
		must(w.producer().SendOneWay(context.Background(), m), "a one-way send")
	}
	difference := w.stored(topic, queues, int64(200/len(queues))).difference(keys)
	w.check("each_stored_once", difference == "", difference)
}

func producerBatch(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 1)[:1]
	var batch []*primitive.Message
	var keys []string
	for i := range 50 {
		m := message(topic, fmt.Sprintf("tag%d", i%3), fmt.Sprintf("k%d", i))
		m.WithProperty("number", fmt.Sprint(i))
		m.Queue = queues[0]
		batch = append(batch, m)
		keys = append(keys, key(m))
	}
	sent, err := w.producer().SendSync(context.Background(), batch...)
	must(err, "a batch")
	w.check("ids_of_each", len(strings.Split(sent.OffsetMsgID, ",")) == 50, sent.OffsetMsgID)
	in := w.stored(topic, queues, 50)
	difference := in.difference(keys)
	w.check("each_stored_once", difference == "", difference)
	var wrong []string
	for i, a := range in.all() {
		m := a.message
		if a.key != keys[i] || a.offset != int64(i) || m.GetTags() != fmt.Sprintf("tag%d", i%3) ||
			m.GetProperty("number") != fmt.Sprint(i) || string(m.Body) != "body of "+keys[i] {
			wrong = append(wrong, m.String())
		}
	}
	w.check("in_order_with_tags_properties_and_bodies", len(wrong) == 0, wrong)
}

func producerOrdered(w *world) {
	topic := w.name("t")
	w.createTopic(topic, 4)
	sender := w.producerWith(producer.WithQueueSelector(producer.NewHashQueueSelector()))
	var keys []string
	for i := range 80 {
		m := message(topic, "T", fmt.Sprintf("k%d", i)).WithShardingKey(fmt.Sprintf("order-%d", i%8))
		_, err := sender.SendSync(context.Background(), m)
		must(err, "a send")
		keys = append(keys, key(m))
	}
	in := &inbox{}
	running := w.pushInto(in, w.name("g"), topic, "*")
	in.await(keys)
	must(running.Shutdown(), "a shutdown")
	difference := in.difference(keys)
	w.check("each_stored_once", difference == "", difference)
	// Consumed side by side; what counts is how they lie in their queues.
	arrivals := in.all()
	slices.SortFunc(arrivals, func(a, b arrival) int { return int(a.offset - b.offset) })
	places, sequences := map[string][]string{}, map[string][]int{}
	for _, a := range arrivals {
		order := a.message.GetShardingKey()
		if !slices.Contains(places[order], a.queue) {
			places[order] = append(places[order], a.queue)
		}
		var number int
		_, err := fmt.Sscanf(a.key, "k%d", &number)
		must(err, a.key)
		sequences[order] = append(sequences[order], number)
	}
	good := len(places) == 8
	for order := range places {
		good = good && len(places[order]) == 1 && slices.IsSorted(sequences[order])
	}
	w.check("one_queue_per_key_in_order", good, fmt.Sprint(places, sequences))
}

func bodies(w *world) {
	topic := w.name("t")
	queues := w.createTopic(topic, 1)[:1]
	random := rand.New(rand.NewSource(1))
	sizes := []int{1, 4096, 4097, 100_000, 1 << 20, 3 << 20}
	expected := map[string][]byte{}
	for _, size := range sizes {
		for kind, body := range map[string][]byte{"zeros": make([]byte, size), "noise": make([]byte, size)} {
			if kind == "noise" {
				random.Read(body)
			}
			m := message(topic, "", fmt.Sprintf("%s-%d", kind, size))
			m.Body, m.Queue = body, queues[0]
			// The client compresses in place, and a send keeps its own copy here.
			expected[key(m)] = bytes.Clone(body)
			w.send(m)
		}
	}
	in := &inbox{}
	w.pushInto(in, w.name("g"), topic, "*")
	until(func() bool { return len(in.counts()) == len(expected) })
	for _, a := range in.all() {
		w.check(a.key, bytes.Equal(a.message.Body, expected[a.key]), fmt.Sprintf("%d bytes", len(a.message.Body)))
	}
	w.check("all_arrive", len(in.counts()) == len(expected), in.counts())
}
