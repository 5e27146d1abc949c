// kafkajs: one round trip with the client's default settings. See ../README.md.
const { Kafka, CompressionTypes, CompressionCodecs, logLevel, Partitioners } = require('kafkajs')

const RECORDS = 10_000
const [bootstrap, topic, compression, partitions] = process.argv.slice(2)
const key = seq => `k${seq % 97}`
const value = seq => `${seq}:${'drave '.repeat((seq * 31) % 40)}`

function fail(message) {
  console.error(message)
  process.exit(1)
}

// kafkajs itself brings gzip only; these are the packages its documentation points to, or plain codecs for them.
async function codecs() {
  CompressionCodecs[CompressionTypes.Snappy] = require('kafkajs-snappy')
  const lz4 = require('lz4-napi')
  CompressionCodecs[CompressionTypes.LZ4] = () => ({
    compress: encoder => lz4.compressFrame(encoder.buffer),
    decompress: buffer => lz4.decompressFrame(buffer),
  })
  const zstd = await new Promise(resolve => require('zstd-codec').ZstdCodec.run(resolve))
  const simple = new zstd.Simple()
  CompressionCodecs[CompressionTypes.ZSTD] = () => ({
    compress: async encoder => Buffer.from(simple.compress(encoder.buffer, 3)),
    decompress: async buffer => Buffer.from(simple.decompress(buffer)),
  })
}

const kinds = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}
const kafka = new Kafka({ brokers: bootstrap.split(','), logLevel: logLevel.WARN })
const seen = new Map()
const positions = new Map()

async function produce() {
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner })
  await producer.connect()
  for (let first = 0; first < RECORDS; first += 500) {
    const messages = []
    for (let seq = first; seq < first + 500; seq++) messages.push({ key: key(seq), value: value(seq) })
    await producer.send({ topic, messages, compression: kinds[compression] })
  }
  await producer.disconnect()
}

// Reads `wanted` records, commits exactly what was read, and leaves.
async function consume(wanted) {
  const groupId = `group-${topic}`
  const consumer = kafka.consumer({ groupId, maxWaitTimeInMs: 300 }) // leaving waits for the fetch under way, 5 s by default
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  let got = 0
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => fail(`only ${got} of ${wanted} records in 60 s`), 60_000)
    consumer.on(consumer.events.CRASH, event => reject(event.payload.error))
    consumer
      .run({
        autoCommit: false,
        eachMessage: async ({ partition, message }) => {
          if (got === wanted) return
          const due = positions.get(partition) || 0
          if (Number(message.offset) !== due) fail(`partition ${partition}: offset ${message.offset} where ${due} was due`)
          positions.set(partition, due + 1)
          const text = message.value.toString()
          const seq = parseInt(text, 10)
          if (message.key.toString() !== key(seq) || text !== value(seq)) fail(`record ${seq} came back changed`)
          if (!seen.has(partition)) seen.set(partition, [])
          seen.get(partition).push(seq)
          if (++got === wanted) {
            clearTimeout(late)
            resolve()
          }
        },
      })
      .catch(reject)
  })
  await consumer.commitOffsets(
    [...positions].map(([partition, offset]) => ({ topic, partition, offset: String(offset) })))
  await consumer.disconnect()
}

async function main() {
  await codecs()
  const admin = kafka.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: Number(partitions) }] })
  await admin.disconnect()
  await produce()
  const half = RECORDS / 2 + 123
  await consume(half)
  await consume(RECORDS - half)
  const all = []
  for (const [partition, seqs] of seen) {
    if (seqs.some((seq, at) => at > 0 && seqs[at - 1] >= seq)) fail(`partition ${partition} came back out of order`)
    all.push(...seqs)
  }
  all.sort((a, b) => a - b)
  if (all.length !== RECORDS || all.some((seq, at) => seq !== at)) fail('records are missing or came twice')
}

main().then(() => process.exit(0), error => fail(error.stack))
