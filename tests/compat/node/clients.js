// SPDX-License-Identifier: MIT
// node clients.js CLIENT PORT: runs one of Redis' clients through what people do with it, with its
// default settings. Prints "ok" lines; the exit status is 0 when all hold.
'use strict';
const assert = require('node:assert');
const [client, port] = [process.argv[2], Number(process.argv[3])];

async function step(name, run) {
  await run();
  console.log('ok', client, name);
}

async function ioredisCluster(module) {
  const { Cluster } = require(module);
  const cluster = new Cluster([{ host: '127.0.0.1', port }]);
  await step('keys', async () => {
    for (let i = 0; i < 200; i++) assert.equal(await cluster.set(`c${i}`, i), 'OK');
    for (let i = 0; i < 200; i++) assert.equal(await cluster.get(`c${i}`), String(i));
    assert.equal(await cluster.incr('cn'), 1);
  });
  assert.ok(cluster.nodes('master').length >= 3);
  cluster.disconnect();
}

async function ioredis(module, options) {
  const Redis = require(module);
  const redis = new Redis({ host: '127.0.0.1', port, connectionName: 'test', ...options });
  await step('ping', async () => assert.equal(await redis.ping(), 'PONG'));
  await redis.flushdb();
  await step('strings', async () => {
    assert.equal(await redis.set('s', 'v'), 'OK');
    assert.equal(await redis.get('s'), 'v');
    assert.equal(await redis.get('none'), null);
    assert.equal(await redis.set('s', 'w', 'NX'), null);
    assert.equal(await redis.set('s', 'w', 'EX', 100, 'GET'), 'v');
    assert.ok((await redis.ttl('s')) > 90);
    assert.equal(await redis.incrby('n', 41), 41);
    assert.equal(await redis.incr('n'), 42);
    assert.equal(await redis.append('s', 'x'), 2);
    assert.deepEqual(await redis.mget('s', 'n', 'none'), ['wx', '42', null]);
    assert.equal(await redis.del('s', 'n', 'none'), 2);
  });
  await step('binary', async () => {
    const value = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
    await redis.set(Buffer.from([0, 13, 10, 255]), value);
    assert.ok(value.equals(await redis.getBuffer(Buffer.from([0, 13, 10, 255]))));
  });
  await step('pipeline', async () => {
    const pipeline = redis.pipeline();
    for (let i = 0; i < 1000; i++) pipeline.set(`p${i}`, i);
    for (let i = 0; i < 1000; i++) pipeline.get(`p${i}`);
    const results = await pipeline.exec();
    results.slice(1000).forEach(([error, value], i) => {
      assert.equal(error, null);
      assert.equal(value, String(i));
    });
  });
  await step('transaction', async () => {
    const results = await redis.multi().set('{t}a', 1).incr('{t}a').get('{t}a').exec();
    assert.deepEqual(results, [[null, 'OK'], [null, 2], [null, '2']]);
  });
  await step('scan', async () => {
    const seen = new Set();
    for await (const keys of redis.scanStream({ match: 'p*', count: 100 })) {
      keys.forEach((key) => seen.add(key));
    }
    assert.equal(seen.size, 1000);
  });
  await step('errors', async () => {
    await redis.set('text', 'x');
    await assert.rejects(redis.incr('text'), /not an integer/);
    await assert.rejects(redis.call('NOSUCH'), /unknown command/);
  });
  await redis.quit();
}

async function nodeRedis(module, options) {
  const { createClient } = require(module);
  const redis = createClient({ url: `redis://127.0.0.1:${port}`, name: 'test', ...options });
  redis.on('error', (error) => { throw error; });
  await redis.connect();
  await step('ping', async () => assert.equal(await redis.ping(), 'PONG'));
  await redis.flushDb();
  await step('strings', async () => {
    assert.equal(await redis.set('s', 'v'), 'OK');
    assert.equal(await redis.get('s'), 'v');
    assert.equal(await redis.get('none'), null);
    assert.equal(await redis.set('s', 'w', { NX: true }), null);
    assert.equal(await redis.set('s', 'w', { EX: 100, GET: true }), 'v');
    assert.ok((await redis.ttl('s')) > 90);
    assert.equal(await redis.incrBy('n', 41), 41);
    assert.equal(await redis.incr('n'), 42);
    assert.deepEqual(await redis.mGet(['s', 'n', 'none']), ['w', '42', null]);
    assert.equal(await redis.del(['s', 'n', 'none']), 2);
  });
  await step('pipeline', async () => {
    await Promise.all(Array.from({ length: 1000 }, (_, i) => redis.set(`p${i}`, String(i))));
    const values = await Promise.all(Array.from({ length: 1000 }, (_, i) => redis.get(`p${i}`)));
    values.forEach((value, i) => assert.equal(value, String(i)));
  });
  await step('transaction', async () => {
    const results = await redis.multi().set('{t}a', '1').incr('{t}a').get('{t}a').exec();
    assert.deepEqual(results, ['OK', 2, '2']);
  });
  await step('scan', async () => {
    const seen = new Set();
    for await (const keys of redis.scanIterator({ MATCH: 'p*', COUNT: 100 })) {
      [].concat(keys).forEach((key) => seen.add(key));
    }
    assert.equal(seen.size, 1000);
  });
  await step('errors', async () => {
    await redis.set('text', 'x');
    await assert.rejects(redis.incr('text'), /not an integer/);
    await assert.rejects(redis.sendCommand(['NOSUCH']), /unknown command/);
  });
  await redis.quit();
}

const clients = {
  'ioredis': () => ioredis('ioredis', {}),
  'ioredis-newest': () => ioredis('ioredis-newest', {}),
  'ioredis-cluster': () => ioredisCluster('ioredis'),
  'ioredis-newest-cluster': () => ioredisCluster('ioredis-newest'),
  'redis': () => nodeRedis('redis', {}),
  'redis-newest': () => nodeRedis('redis-newest', {}),
};

setTimeout(() => { console.error('timed out'); process.exit(3); }, 60000).unref();
clients[client]().then(
  () => process.exit(0),
  (error) => { console.error(error); process.exit(1); });
