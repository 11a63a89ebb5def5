// Scenarios of the published Node.js client ali-ons against a running broker:
//     node interop.js NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID]      or   --list
// One line per check; the last line counts; the exit code is 0 only when nothing failed.
'use strict';

const { execFile, spawn } = require('child_process');
const fs = require('fs');
const path = require('path');
const { promisify } = require('util');
const { Message, Producer, Consumer } = require('ali-ons');

// A scenario that takes longer is ended as failed.
const WATCHDOG_MS = 120_000;
// Longest wait for a condition.
const PATIENCE_MS = 60_000;

// What the client says, for whoever looks into a failure.
const logDir = path.join(__dirname, 'target');
fs.mkdirSync(logDir, { recursive: true });
const log = fs.createWriteStream(path.join(logDir, 'client.log'));
const write = level => (...words) => log.write(`${new Date().toISOString()} ${level} ${require('util').format(...words)}\n`);
const logger = { debug() {}, info: write('info'), warn: write('warn'), error: write('error') };

let passed = 0, failed = 0, instances = 0;
const line = text => console.log(text.replace(/\n/g, ' '));
const note = text => line(`# ${text}`);
function check(name, holds, why = '') {
  if (holds) {
    passed++;
    line(`PASS ${name}`);
  } else {
    failed++;
    line(`FAIL ${name}: ${typeof why === 'string' ? why : JSON.stringify(why)}`.slice(0, 500));
  }
}

/** Asks again until the condition holds or patience is over. */
async function until(holds, patienceMs = PATIENCE_MS) {
  const deadline = Date.now() + patienceMs;
  while (!await holds()) {
    if (Date.now() > deadline) return false;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  return true;
}

/** The clients, topics and groups of one scenario; what it hands out is closed with it. */
class World {
  constructor(namesrv, runId, scenario) {
    Object.assign(this, { namesrv, runId, scenario, closers: [] });
  }

  /** A name that no other scenario or run uses. */
  name(suffix) { return `node-${this.runId}-${this.scenario}-${suffix}`; }
  check(name, holds, why) { check(`${this.scenario}.${name}`, holds, why); }

  options(more) {
    return {
      nameSrv: this.namesrv,
      // It asks for one, and uses it only to find a name server by HTTP.
      httpclient: { request() { throw new Error('no name server is looked for by HTTP here'); } },
      logger,
      // Each client is one of its own, as if it ran in a process of its own.
      instanceName: `interop-${process.pid}-${++instances}`,
      // It learns of new routes and of other members only by asking: it does not listen to the broker's notifications.
      pollNameServerInteval: 1000,
      rebalanceInterval: 1000,
      heartbeatBrokerInterval: 3000,
      ...more,
    };
  }

  async producer() {
    if (!this.sender) {
      // A send that is tried again may store a message twice.
      this.sender = new Producer(this.options({ producerGroup: this.name('p'), retryTimesWhenSendFailed: 0, sendMsgTimeout: 10_000 }));
      this.sender.on('error', error => logger.error(error));
      await this.sender.ready();
      this.closers.push(() => this.sender.close());
    }
    return this.sender;
  }

  /** Makes a topic with these many queues on each broker, by the client's own call, and waits until it is in the route. */
  async createTopic(topic, queues) {
    const client = (await this.producer())._mqClient;
    const { brokerDatas } = await client.getTopicRouteInfoFromNameServer('TBW102', 3000);
    for (const { brokerAddrs } of brokerDatas) {
      const config = { topicName: topic, readQueueNums: queues, writeQueueNums: queues, perm: 6, topicFilterType: 'SINGLE_TAG', topicSysFlag: 0, order: false };
      await client.createTopic(brokerAddrs['0'], 'TBW102', config, 3000);
    }
    await this.routed(topic, brokerDatas.length);
    return queues * brokerDatas.length;
  }

  async routed(topic, brokers) {
    const client = (await this.producer())._mqClient;
    const isRouted = await until(async () => {
      try {
        return (await client.getTopicRouteInfoFromNameServer(topic, 3000)).queueDatas.length >= brokers;
      } catch (error) {
        return false;
      }
    });
    if (!isRouted) throw new Error(`${topic} is not in the route of ${brokers} brokers`);
  }

  /**
   * Runs RingMQ's own tool for what no client can do, and gives what it prints. Clients go on meanwhile: one whose timers are late closes
   * its connections.
   */
  async tool(...words) {
    const { stdout } = await promisify(execFile)(process.env.INTEROP_TOOL, [ '--namesrv', this.namesrv, ...words ]);
    return stdout;
  }

  /** First and last-plus-one offset of the first queue of a topic by the brokers' addresses, or nothing while one does not have it. */
  async bounds(topic) {
    const client = (await this.producer())._mqClient;
    const { brokerDatas } = await client.getTopicRouteInfoFromNameServer('TBW102', 3000);
    const bounds = {};
    for (const { brokerAddrs } of brokerDatas) {
      // Far behind the end: this is answered at once, with both.
      const header = { consumerGroup: this.name('bounds'), topic, queueId: 0, queueOffset: 2 ** 40, maxMsgNums: 1, sysFlag: 4, commitOffset: 0, suspendTimeoutMillis: 0, subscription: '*', subVersion: 0 };
      try {
        const { minOffset, maxOffset } = await client.pullMessage(brokerAddrs['0'], header, 3000);
        bounds[brokerAddrs['0']] = { begin: minOffset, end: maxOffset };
      } catch (error) {
        return undefined;
      }
    }
    return bounds;
  }

  async send(topic, tag, key, change = () => {}) {
    const message = new Message(topic, tag, `body of ${key}`);
    message.keys = [ key ];
    change(message);
    const sent = await (await this.producer()).send(message);
    if (sent.sendStatus !== 'SEND_OK') throw new Error(`a send was answered with ${JSON.stringify(sent)}`);
    return sent;
  }

  /** Sends messages with the keys prefix0, prefix1 …; the client takes the queues in turn. */
  async sendMany(topic, tag, prefix, count) {
    const keys = Array.from({ length: count }, (_, i) => prefix + i);
    for (const key of keys) await this.send(topic, tag, key);
    return keys;
  }

  /** A running consumer that begins with the first message. */
  async push(group, topic, expression, handle, options = {}) {
    const consumer = new Consumer(this.options({ consumerGroup: group, consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET', ...options }));
    // It tells of each message that its handler refused, too.
    consumer.on('error', error => logger.error(error));
    consumer.subscribe(topic, expression, async message => handle(message));
    await consumer.ready();
    let isClosed = false;
    const close = async () => {
      if (!isClosed) {
        isClosed = true;
        await consumer.close();
      }
    };
    this.closers.push(close);
    return { close, consumer };
  }

  pushInto(inbox, group, topic, expression, options) {
    return this.push(group, topic, expression, message => inbox.add(message), options);
  }

  /**
   * Closes a consumer that was given everything, once it counts it as done: its close commits what is done, and waits for
   * an answer that comes after the commits.
   */
  async stop({ close, consumer }) {
    await until(() => Array.from(consumer.processQueueTable.values()).every(({ processQueue }) => processQueue.msgCount === 0));
    await close();
  }

  async close() {
    while (this.closers.length) await this.closers.pop()();
  }
}

/** What consumers were given, in the order in which they were. */
class Inbox {
  constructor() { this.arrivals = []; }
  add(message) {
    const { topic, queueId, queueOffset, storeHost, reconsumeTimes, tags, body, msgId } = message;
    this.arrivals.push({ key: message.keys, topic, queueId, queueOffset, storeHost, reconsumeTimes, tags, body, msgId, at: Date.now() });
  }
  /** Queue offsets by the addresses of the brokers. */
  offsets() {
    const offsets = {};
    for (const { storeHost, queueOffset } of this.arrivals) (offsets[storeHost] = offsets[storeHost] || []).push(queueOffset);
    return offsets;
  }
  counts() {
    const counts = {};
    for (const { key } of this.arrivals) counts[key] = (counts[key] || 0) + 1;
    return counts;
  }
  lacks(keys) {
    const counts = this.counts();
    return keys.filter(key => !counts[key]);
  }
  await(keys) { return until(() => this.lacks(keys).length === 0); }
  /** What is missing, repeated or unexpected; empty if each key arrived once. */
  difference(keys) {
    const counts = this.counts(), expected = new Set(keys);
    const parts = {
      missing: this.lacks(keys),
      repeated: Object.keys(counts).filter(key => counts[key] > 1),
      unexpected: Object.keys(counts).filter(key => !expected.has(key)),
    };
    return Object.entries(parts).filter(([, found ]) => found.length).map(([ what, found ]) => `${found.length} ${what} ${found}`).join(' ');
  }
}

async function send(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 2);
  const next = {}, wrong = [], ids = {};
  for (let i = 0; i < 100; i++) {
    const sent = await world.send(topic, 'T', `k${i}`);
    const queue = `${sent.messageQueue.brokerName}-${sent.messageQueue.queueId}`;
    if (sent.queueOffset !== (next[queue] || 0) || !/^[0-9A-F]{32}$/.test(sent.msgId)) wrong.push(sent);
    next[queue] = sent.queueOffset + 1;
    ids[`k${i}`] = [ sent.msgId, sent.queueOffset ];
  }
  world.check('answers_count_the_offsets_of_each_queue', wrong.length === 0, wrong);
  const inbox = new Inbox();
  await world.pushInto(inbox, world.name('g'), topic, '*');
  await inbox.await(Object.keys(ids));
  const elsewhere = inbox.arrivals.filter(({ key, msgId, queueOffset }) => ids[key][0] !== msgId || ids[key][1] !== queueOffset);
  world.check('stored_where_answered', elsewhere.length === 0 && inbox.difference(Object.keys(ids)) === '', elsewhere);
}

async function bodies(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 1);
  const noise = Buffer.alloc(100_000, 1).map((_, i) => (i * i * 31 + (i >> 3)) & 255);
  const sent = { one: Buffer.from([ 0 ]), text: Buffer.from('Grüße, 世界 🦀'), zeros: Buffer.alloc(100_000), noise: Buffer.from(noise) };
  for (const [ key, body ] of Object.entries(sent)) await world.send(topic, 'T', key, message => { message.body = body; });
  const inbox = new Inbox();
  await world.pushInto(inbox, world.name('g'), topic, '*');
  await inbox.await(Object.keys(sent));
  for (const key of Object.keys(sent)) {
    const arrived = inbox.arrivals.find(arrival => arrival.key === key);
    world.check(key, arrived && sent[key].equals(arrived.body), arrived ? `${arrived.body.length} bytes` : 'nothing');
  }
}

async function pushConcurrent(world) {
  const topic = world.name('t');
  const queues = await world.createTopic(topic, 4);
  for (const [ way, options ] of Object.entries({ one_at_a_time: {}, eight_at_a_time: { parallelConsumeLimit: 8 } })) {
    const inbox = new Inbox(), group = world.name(way);
    let keys = await world.sendMany(topic, 'T', `${way}-before-`, 100);
    const running = await world.push(group, topic, '*', message => message.keys.startsWith(way) && inbox.add(message), options);
    world.check(`${way}.sent_before_start_arrives`, await inbox.await(keys), inbox.lacks(keys));
    for (let round = 0; round < 3; round++) {
      const more = await world.sendMany(topic, 'T', `${way}-held-${round}-`, queues);
      world.check(`${way}.held_pull_wakes.${round}`, await inbox.await(more), inbox.lacks(more));
      keys = keys.concat(more);
    }
    keys = keys.concat(await world.sendMany(topic, 'T', `${way}-after-`, 200));
    world.check(`${way}.sent_while_running_arrives`, await inbox.await(keys), inbox.lacks(keys));
    await world.stop(running);
    world.check(`${way}.each_once`, inbox.difference(keys) === '', inbox.difference(keys));
  }
}

async function pushTags(world) {
  const topic = world.name('t');
  const queues = await world.createTopic(topic, 2);
  // "AaTag" and "BBTag" have the same hash code: telling them apart takes the client's second look.
  const accepted = { 'TagA || TagB': [ 'TagA', 'TagB' ], TagC: [ 'TagC' ], AaTag: [ 'AaTag' ], '*': [ 'TagA', 'TagB', 'TagC', 'AaTag', 'BBTag' ] };
  const inboxes = {}, expected = {};
  for (const expression of Object.keys(accepted)) {
    inboxes[expression] = new Inbox();
    expected[expression] = [];
    await world.pushInto(inboxes[expression], world.name(`g${Object.keys(inboxes).length}`), topic, expression);
  }
  for (const tag of accepted['*']) {
    const keys = await world.sendMany(topic, tag, `${tag}-`, 20 + queues);
    for (const [ expression, tags ] of Object.entries(accepted)) if (tags.includes(tag)) expected[expression].push(...keys);
  }
  for (const [ expression, inbox ] of Object.entries(inboxes)) await inbox.await(expected[expression]);
  await world.close();
  for (const [ expression, inbox ] of Object.entries(inboxes)) {
    world.check(`subscribed to ${expression}`, inbox.difference(expected[expression]) === '', inbox.difference(expected[expression]));
  }
}

async function pushSql(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 2);
  const inbox = new Inbox(), expected = [];
  const subString = "(weight BETWEEN 10 AND 19 AND colour <> 'red') OR TAGS = 'always'";
  await world.pushInto(inbox, world.name('g'), topic, { expressionType: 'SQL92', subString });
  for (let i = 0; i < 60; i++) {
    const colour = i % 2 ? 'blue' : 'red', tag = i >= 50 ? 'always' : 'seldom';
    await world.send(topic, tag, `k${i}`, message => Object.assign(message.properties, { weight: String(i), colour }));
    if ((i >= 10 && i <= 19 && colour === 'blue') || tag === 'always') expected.push(`k${i}`);
  }
  world.check('selected_arrive', await inbox.await(expected), inbox.lacks(expected));
  await world.close();
  world.check('and_nothing_else', inbox.difference(expected) === '', inbox.difference(expected));
}

async function pushBroadcast(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 2);
  const inboxes = [ new Inbox(), new Inbox() ];
  for (const inbox of inboxes) await world.pushInto(inbox, world.name('g'), topic, '*', { isBroadcast: true });
  const keys = await world.sendMany(topic, 'T', 'k', 60);
  for (const inbox of inboxes) await inbox.await(keys);
  await world.close();
  inboxes.forEach((inbox, i) => world.check(`consumer_${i}_gets_each_once`, inbox.difference(keys) === '', inbox.difference(keys)));
}

/** What is refused comes again, with a count, as if from its own topic. */
async function retry(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 2);
  const inbox = new Inbox();
  await world.push(world.name('g'), topic, '*', message => {
    inbox.add(message);
    // The client passes over an answer of "again" to a message that has come again; an exception it never does.
    if (Number(message.keys.slice(1)) % 3 === 0 && message.reconsumeTimes < 1) throw new Error('not yet');
  });
  const keys = await world.sendMany(topic, 'T', 'k', 12);
  await until(() => inbox.arrivals.length >= 12 + 4);
  const tries = {};
  for (const { key, reconsumeTimes } of inbox.arrivals) (tries[key] = tries[key] || []).push(reconsumeTimes);
  const wanted = Object.fromEntries(keys.map((key, i) => [ key, i % 3 ? [ 0 ] : [ 0, 1 ] ]));
  world.check('each_as_often_as_refused', keys.every(key => String(tries[key]) === String(wanted[key])), tries);
  const wrong = inbox.arrivals.filter(arrival => arrival.topic !== topic || arrival.tags !== 'T' || String(arrival.body) !== `body of ${arrival.key}`);
  world.check('with_its_own_topic_tag_and_body', wrong.length === 0, wrong);
  const times = key => inbox.arrivals.filter(arrival => arrival.key === key).map(({ at }) => at);
  // It leaves the delay to the broker: ten seconds for the first time.
  const early = keys.filter(key => times(key).length > 1 && times(key)[1] - times(key)[0] < 10_000);
  world.check('not_before_its_delay', early.length === 0, early);
}

/** What is refused each time becomes a dead letter when it has been retried as often as it may. */
async function dlq(world) {
  const topic = world.name('t'), group = world.name('g'), dead = `%DLQ%${group}`;
  await world.createTopic(topic, 2);
  const inbox = new Inbox(), letters = new Inbox();
  await world.push(group, topic, '*', message => {
    inbox.add(message);
    throw new Error('never');
  }, { maxReconsumeTimes: 1 });
  const keys = await world.sendMany(topic, 'T', 'k', 8);
  await until(() => world.bounds(dead));
  await world.pushInto(letters, world.name('undertaker'), dead, '*');
  world.check('all_are_dead', await letters.await(keys), letters.lacks(keys));
  await world.close();
  world.check('each_once', letters.difference(keys) === '', letters.difference(keys));
  const tries = Object.values(inbox.counts());
  world.check('consumed_twice', tries.length === keys.length && tries.every(count => count === 2), inbox.counts());
  // The client gives a retried message its own topic back.
  const wrong = letters.arrivals.filter(letter => letter.reconsumeTimes !== 2 || letter.tags !== 'T' || String(letter.body) !== `body of ${letter.key}`);
  world.check('what_they_were', wrong.length === 0, wrong);
}

async function delay(world) {
  const topic = world.name('t');
  await world.createTopic(topic, 2);
  const inbox = new Inbox(), due = {};
  await world.pushInto(inbox, world.name('g'), topic, '*');
  for (let i = 0; i < 20; i++) {
    const level = 1 + i % 2;
    due[`k${i}`] = Date.now() + [ 1000, 5000 ][level - 1];
    await world.send(topic, 'T', `k${i}`, message => { message.delayTimeLevel = level; });
  }
  const keys = Object.keys(due);
  world.check('all_arrive', await inbox.await(keys), inbox.lacks(keys));
  await world.close();
  world.check('each_once', inbox.difference(keys) === '', inbox.difference(keys));
  const early = inbox.arrivals.filter(({ key, at }) => at < due[key]);
  world.check('not_before_they_are_due', early.length === 0, early);
}

/**
 * A group that is new to a topic: on one from which nothing was deleted yet RocketMQ lets it begin with the first message,
 * whatever the consumer asks for; a group with offsets goes on from them.
 */
async function consumeFrom(world) {
  const topic = world.name('t');
  const queues = await world.createTopic(topic, 1);
  const before = await world.sendMany(topic, 'T', 'before-', 10 * queues);
  const rules = [ 'CONSUME_FROM_FIRST_OFFSET', 'CONSUME_FROM_LAST_OFFSET', 'CONSUME_FROM_TIMESTAMP' ];
  for (const consumeFromWhere of rules) {
    const inbox = new Inbox();
    const running = await world.pushInto(inbox, world.name(consumeFromWhere), topic, '*', { consumeFromWhere });
    world.check(`${consumeFromWhere}.new_group_of_a_young_topic_begins_with_the_first_message`, await inbox.await(before), inbox.lacks(before));
    await world.stop(running);
  }
  const after = await world.sendMany(topic, 'T', 'after-', 10 * queues);
  for (const consumeFromWhere of rules) {
    const inbox = new Inbox();
    await world.pushInto(inbox, world.name(consumeFromWhere), topic, '*', { consumeFromWhere });
    await inbox.await(after);
    world.check(`${consumeFromWhere}.known_group_goes_on`, inbox.difference(after) === '', inbox.difference(after));
  }
}

const AGE_MS = 20_000;

/**
 * A topic that has lost its beginning: there a new group begins as it asks, with the first message that is left, behind the last
 * one, or with the first one since a time; and goes on from there without a gap.
 */
async function consumeFromAged(world) {
  const topic = world.name('t');
  await world.tool('topic', 'create', topic, '--queues', '1', '--retention', `${AGE_MS / 1000}s`);
  await until(() => world.bounds(topic));
  const brokers = Object.keys(await world.bounds(topic));
  await world.routed(topic, brokers.length);
  await world.sendMany(topic, 'T', 'lost-', 20);
  const lost = await world.bounds(topic);
  let now;
  const isAged = await until(async () => {
    now = await world.bounds(topic);
    return brokers.every(broker => now[broker].begin === lost[broker].end);
  });
  world.check('topic_loses_its_beginning', isAged, { lost, now });
  await world.sendMany(topic, 'T', 'left-', 20);
  // A consumer's time is in whole seconds, and the broker's clock is not quite this one.
  const moment = new Date(Math.floor(Date.now() / 1000 + 2) * 1000);
  await until(() => Date.now() > moment.getTime() + 1000);
  const since = await world.bounds(topic);
  await world.sendMany(topic, 'T', 'since-', 20);

  const before = await world.bounds(topic);
  const two = number => String(number).padStart(2, '0');
  const consumeTimestamp = moment.getFullYear() + [ moment.getMonth() + 1, moment.getDate(), moment.getHours(), moment.getMinutes(), moment.getSeconds() ].map(two).join('');
  const inboxes = {};
  for (const consumeFromWhere of [ 'CONSUME_FROM_FIRST_OFFSET', 'CONSUME_FROM_LAST_OFFSET', 'CONSUME_FROM_TIMESTAMP' ]) {
    inboxes[consumeFromWhere] = new Inbox();
    await world.pushInto(inboxes[consumeFromWhere], world.name(consumeFromWhere), topic, '*', { consumeFromWhere, consumeTimestamp });
  }
  let next = Date.now();
  await until(async () => {
    if (Date.now() >= next) {
      await world.sendMany(topic, 'T', `at-${next}-`, brokers.length);
      next += 1000;
    }
    return Object.values(inboxes).every(inbox => Object.keys(inbox.offsets()).length === brokers.length);
  });
  const later = await world.bounds(topic);
  const last = await world.sendMany(topic, 'T', 'end-', 4 * brokers.length);
  for (const inbox of Object.values(inboxes)) await inbox.await(last);
  const ends = await world.bounds(topic);
  await world.close();
  for (const [ rule, inbox ] of Object.entries(inboxes)) {
    const wrong = [], gaps = [];
    for (const broker of brokers) {
      const given = (inbox.offsets()[broker] || []).sort((a, b) => a - b);
      // Where it had to begin, if it was slow: messages go on going.
      const [ from, to ] = {
        CONSUME_FROM_FIRST_OFFSET: [ before[broker].begin, later[broker].begin ],
        CONSUME_FROM_LAST_OFFSET: [ before[broker].end, ends[broker].end ],
        CONSUME_FROM_TIMESTAMP: [ before, later ].map(bounds => Math.max(since[broker].end, bounds[broker].begin)),
      }[rule];
      if (!(given[0] >= from && given[0] <= to)) wrong.push(`${broker}: ${given}, not from ${from} to ${to} on`);
      else if (given.length !== ends[broker].end - given[0] || given.some((offset, i) => offset !== given[0] + i)) gaps.push(`${broker}: ${given}`);
    }
    world.check(`${rule}.begins_there`, wrong.length === 0, wrong);
    world.check(`${rule}.goes_on_without_a_gap`, gaps.length === 0, gaps);
  }
}

/** An operator moves groups of this client: while it runs, and while it does not. */
async function groupOffsets(world) {
  const topic = world.name('t'), group = world.name('g'), copied = world.name('copy');
  const queues = await world.createTopic(topic, 1);
  const described = async of => {
    const { lag, queues: all } = JSON.parse(await world.tool('group', 'describe', of, '--json'));
    return { lag, begun: all.filter(queue => queue.topic === topic && queue.committed_offset !== null).length };
  };
  const isAtEnd = of => until(async () => String(Object.values(await described(of))) === String([ 0, queues ]));
  const member = async of => {
    const inbox = new Inbox();
    return { inbox, running: await world.pushInto(inbox, of, topic, '*') };
  };
  let keys = await world.sendMany(topic, 'T', 'k', 20);
  const first = await member(group);
  await first.inbox.await(keys);
  world.check('no_lag', await isAtEnd(group), await described(group));
  await world.tool('group', 'reset-offset', group, '--topic', topic, '--to', 'first');
  const isTwice = () => Object.values(first.inbox.counts()).filter(count => count === 2).length === keys.length;
  world.check('live_reset', await until(isTwice) && first.inbox.arrivals.length === 2 * keys.length, first.inbox.counts());
  await isAtEnd(group);
  await world.stop(first.running);

  const later = await world.sendMany(topic, 'T', 'later-', 10);
  const { lag } = await described(group);
  world.check('lag', lag === 10, lag);
  await world.tool('group', 'reset-offset', group, '--topic', topic, '--to', '5');
  const second = await member(group);
  await second.inbox.await(later);
  await isAtEnd(group);
  await world.stop(second.running);
  const early = first.inbox.arrivals.filter(({ queueOffset }) => queueOffset < 5).map(({ key }) => key);
  keys = keys.concat(later);
  const wanted = keys.filter(key => !early.includes(key));
  world.check('offline_reset', second.inbox.difference(wanted) === '', second.inbox.difference(wanted));

  const piled = await world.sendMany(topic, 'T', 'piled-', 10);
  await world.tool('group', 'clone', group, copied, '--topic', topic);
  await world.tool('group', 'skip', group, '--topic', topic);
  const last = await world.sendMany(topic, 'T', 'end-', 4 * queues);
  keys = keys.concat(piled, last);
  const skipping = await member(group), copy = await member(copied);
  await skipping.inbox.await(last);
  await copy.inbox.await(piled.concat(last));
  await isAtEnd(copied);
  await world.stop(copy.running);
  world.check('skip', skipping.inbox.difference(last) === '', skipping.inbox.difference(last));
  world.check('clone', copy.inbox.difference(piled.concat(last)) === '', copy.inbox.difference(piled.concat(last)));

  // A deleted group is as if it had never been: it begins with the first message.
  await world.tool('group', 'delete', copied);
  const isListed = (await world.tool('group', 'list', '--json')).includes(copied);
  const anew = await member(copied);
  await anew.inbox.await(keys);
  world.check('delete', !isListed && anew.inbox.difference(keys) === '', anew.inbox.difference(keys));
}

/** Topics in order: one queue on one broker, or a number on each that the name server keeps. */
async function orderTopic(world) {
  const { brokerDatas } = await (await world.producer())._mqClient.getTopicRouteInfoFromNameServer('TBW102', 3000);
  for (const [ order, perBroker ] of [ [ 'global', 1 ], [ 'queue', 3 ] ]) {
    const topic = world.name(order), inbox = new Inbox(), brokers = order === 'global' ? 1 : brokerDatas.length;
    await world.tool('topic', 'create', topic, '--queues', String(perBroker), '--order', order);
    await world.routed(topic, brokers);
    await world.pushInto(inbox, world.name(`g-${order}`), topic, '*');
    const keys = [], queues = new Set();
    for (let i = 0; i < 60; i++) {
      const { messageQueue } = await world.send(topic, 'T', `k${i}`);
      queues.add(`${messageQueue.brokerName}-${messageQueue.queueId}`);
      keys.push(`k${i}`);
    }
    await inbox.await(keys);
    world.check(`${order}.all_arrive_once`, inbox.difference(keys) === '', inbox.difference(keys));
    world.check(`${order}.queues`, queues.size === perBroker * brokers, [ ...queues ]);
  }
}

/** A second consumer joins and leaves: the queues are split, and come back. What each owns shows in what it is given. */
async function rebalance(world) {
  const topic = world.name('t'), group = world.name('g');
  const queues = await world.createTopic(topic, 4);
  const first = new Inbox(), second = new Inbox();
  const keys = [];
  let round = 0;
  const reaches = (ofFirst, ofSecond) => until(async () => {
    const sent = await world.sendMany(topic, 'T', `round-${++round}-`, queues);
    keys.push(...sent);
    await until(() => first.lacks(sent).length + second.lacks(sent).length <= sent.length);
    return sent.length - first.lacks(sent).length === ofFirst && sent.length - second.lacks(sent).length === ofSecond;
  });
  await world.pushInto(first, group, topic, '*');
  world.check('alone_gets_all', await reaches(queues, 0), first.counts());
  const { close } = await world.pushInto(second, group, topic, '*');
  world.check('each_gets_half', await reaches(queues / 2, queues / 2), second.counts());
  await close();
  world.check('alone_again_gets_all', await reaches(queues, 0), first.counts());
  const both = new Inbox();
  both.arrivals = first.arrivals.concat(second.arrivals);
  world.check('nothing_lost', both.lacks(keys).length === 0, both.lacks(keys));
}

/** A member of a group is killed: its queues go to the other one, with what it had begun. */
async function rebalanceCrash(world) {
  const topic = world.name('t');
  const queues = await world.createTopic(topic, 4);
  const inbox = new Inbox(), keys = [];
  await world.pushInto(inbox, world.name('g'), topic, '*');
  // A process of this program that is told its group and topic; it prints what it is given, and ends when its input does.
  const victim = spawn(process.execPath, [ __filename, world.namesrv, 'crash_victim', world.runId ], { stdio: [ 'pipe', 'pipe', 'inherit' ] });
  const ended = new Promise(resolve => victim.once('close', resolve));
  let printed = '';
  victim.stdout.on('data', data => { printed += data; });
  const kill = async () => {
    victim.kill('SIGKILL');
    await ended;
  };
  world.closers.push(kill);
  const given = () => new Set(printed.split('\n').map(text => text.split(' ')).filter(([ what ]) => what === 'GIVEN').map(([ , key ]) => key));
  const reaches = wanted => until(async () => {
    const round = await world.sendMany(topic, 'T', `round-${keys.length}-`, queues);
    keys.push(...round);
    await until(() => round.every(key => given().has(key) || !inbox.lacks([ key ]).length));
    return round.length - inbox.lacks(round).length === wanted;
  });
  world.check('each_gets_half', await reaches(queues / 2), inbox.counts());
  const open = await world.sendMany(topic, 'T', 'open-', queues);
  // The client goes from queue to queue, and stops at the first one whose message it does not come to an end with.
  const begun = () => [ open.filter(key => given().has(key)).length, open.length - inbox.lacks(open).length ];
  world.check('each_has_begun', await until(() => String(begun()) === String([ 1, queues / 2 ])), begun());
  await kill();
  world.check('what_it_had_begun_comes_again', await inbox.await(open), inbox.lacks(open));
  world.check('alone_again_gets_all', await reaches(queues), inbox.counts());
  const lost = inbox.lacks(keys).filter(key => !given().has(key));
  world.check('nothing_lost', lost.length === 0, lost);
}

/** What is killed: it never comes to an end with a message that is to stay open. */
async function crashVictim(world) {
  const name = suffix => `node-${world.runId}-rebalance_crash-${suffix}`;
  await world.push(name('g'), name('t'), '*', async message => {
    line(`GIVEN ${message.keys}`);
    if (message.keys.startsWith('open-')) await new Promise(() => {});
  });
  process.stdin.resume();
  await new Promise(resolve => process.stdin.once('close', resolve));
}

/**
 * Two halves with a restart of the broker between them: what the group consumed before does not come again after it, and
 * the rest does. All names follow from the run id. Commits are one-way: see README.md on kill -9.
 */
const half = (world, suffix) => `node-${world.runId}-offsets-${suffix}`;
const PER_HALF = 40;

async function offsetsSave(world) {
  const topic = half(world, 't');
  await world.createTopic(topic, 2);
  const first = await world.sendMany(topic, 'T', 'first-', PER_HALF);
  const inbox = new Inbox();
  const running = await world.pushInto(inbox, half(world, 'g'), topic, '*');
  await inbox.await(first);
  await world.stop(running);
  world.check('first_half_arrives_once', inbox.difference(first) === '', inbox.difference(first));
  await world.sendMany(topic, 'T', 'second-', PER_HALF);
}

async function offsetsCheck(world) {
  const topic = half(world, 't');
  const { brokerDatas } = await (await world.producer())._mqClient.getTopicRouteInfoFromNameServer('TBW102', 3000);
  await world.routed(topic, brokerDatas.length);
  const second = Array.from({ length: PER_HALF }, (_, i) => `second-${i}`);
  const inbox = new Inbox();
  await world.pushInto(inbox, half(world, 'g'), topic, '*');
  await inbox.await(second);
  const third = await world.sendMany(topic, 'T', 'third-', 8);
  world.check('queues_go_on', await inbox.await(third), inbox.lacks(third));
  world.check('the_rest_arrives_once', inbox.difference(second.concat(third)) === '', inbox.difference(second.concat(third)));
}

// The one table of what is covered. `pending`: why it cannot pass on this broker yet; it is then named, not run. `isApart`: runs only
// when named. `needs`: the environment variable without which it is left out.
const SCENARIOS = {
  send: { run: send },
  bodies: { run: bodies },
  push_concurrent: { run: pushConcurrent },
  push_tags: { run: pushTags },
  push_sql: { run: pushSql },
  push_broadcast: { run: pushBroadcast },
  retry: { run: retry },
  dlq: { run: dlq },
  delay: { run: delay },
  consume_from: { run: consumeFrom },
  consume_from_aged: { run: consumeFromAged, needs: 'INTEROP_TOOL' },
  group_offsets: { run: groupOffsets, needs: 'INTEROP_TOOL' },
  order_topic: { run: orderTopic, needs: 'INTEROP_TOOL' },
  rebalance: { run: rebalance },
  rebalance_crash: { run: rebalanceCrash },
  offsets_save: { run: offsetsSave, isApart: true },
  offsets_check: { run: offsetsCheck, isApart: true },
  crash_victim: { run: crashVictim, isApart: true },
};

function summary() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}

async function runOne(namesrv, runId, name) {
  const world = new World(namesrv, runId, name), begun = Date.now();
  const watchdog = setTimeout(() => {
    check(name, false, `hangs for ${WATCHDOG_MS} ms`);
    summary();
  }, WATCHDOG_MS);
  try {
    await SCENARIOS[name].run(world);
    await world.close();
  } catch (error) {
    check(name, false, error.stack);
  }
  clearTimeout(watchdog);
  note(`${name} took ${Date.now() - begun} ms`);
}

async function main([ namesrv, which, runId = Date.now().toString(36), ...rest ]) {
  if (namesrv === '--list' && !which) {
    Object.keys(SCENARIOS).forEach(name => console.log(name));
    return;
  }
  const names = which === 'all' ? Object.keys(SCENARIOS).filter(name => !SCENARIOS[name].isApart && (!SCENARIOS[name].needs || process.env[SCENARIOS[name].needs])) : (which || '').split(',');
  const unknown = names.find(name => !SCENARIOS[name]);
  if (!which || rest.length || unknown !== undefined) {
    console.error(unknown ? `no scenario ${unknown}; --list names them` : 'usage: NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID]   or   --list');
    process.exit(2);
  }
  note(`client ali-ons ${require('ali-ons/package.json').version}, run ${runId}`);
  // Side by side: most of their time they wait for a timer of the client. By name a pending one does run: so one sees whether
  // it still has to wait.
  let pending = 0;
  const chosen = names.filter(name => {
    const waits = which === 'all' && SCENARIOS[name].pending;
    if (waits) line(`PENDING ${name}: waits for ${SCENARIOS[name].pending}`);
    pending += waits ? 1 : 0;
    return !waits;
  });
  await Promise.all(chosen.map(name => runOne(namesrv, runId, name)));
  if (pending) note(`${pending} pending`);
  summary();
}

main(process.argv.slice(2));
