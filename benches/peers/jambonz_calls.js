// Places calls at jambonz_recorder.js in real time, as jambonz does: metadata, then 640 bytes every 20 ms (16-bit samples
// at 8,000 Hz, two channels). It is the recorder's S3 store as well, which keeps nothing but counts. Prints what a
// call-second cost the recorder and how much audio arrived in the store.
//
//   MODULES=FOLDER node jambonz_calls.js PORT CERTIFICATE STORE-PORT RECORDER-PID CALLS SECONDS RAMP-SECONDS
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const path = require('path');
const Module = require('module');

const load = Module.createRequire(path.join(path.resolve(process.env.MODULES), 'package.json'));
const WebSocket = load('ws');
const [port, certificate, storePort, pid, calls, secs, ramp] = process.argv.slice(2);
const FRAME_BYTES = 640;
const FRAME_MS = 20;
const frame = crypto.randomBytes(FRAME_BYTES);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
let stored = 0;
let finished = 0;
let sent = 0;
let worstLagMs = 0;

const store = http.createServer((request, response) => {
  let body = 0;
  request.on('data', (part) => { body += part.length; });
  request.on('end', () => {
    const query = new URL(request.url, 'http://store').searchParams;
    if (request.method === 'PUT') {
      stored += body;
      response.setHeader('ETag', '"0"');
      response.end();
    } else if (query.has('uploads')) {
      response.end('<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>');
    } else {
      finished += 1;
      response.end('<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>');
    }
  });
});

// User and system time so far, in steps of 10 ms (proc(5)).
function cpuMs() {
  const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

async function call(end) {
  const socket = new WebSocket(`wss://localhost:${port}/record/`, { ca: fs.readFileSync(certificate) });
  await new Promise((done, failed) => socket.on('open', done).on('error', failed));
  socket._socket.setNoDelay(true);
  const id = crypto.randomUUID();
  socket.send(JSON.stringify({
    sampleRate: 8000, accountSid: 'a', callSid: id, direction: 'inbound', from: '+15550100001', to: '+15550100002',
    callId: id, applicationSid: 'b', originatingSipIp: '127.0.0.1', originatingSipTrunkName: 'trunk',
  }));
  const start = performance.now();
  for (let count = 1; performance.now() < end; count += 1) {
    const due = start + count * FRAME_MS;
    await sleep(Math.max(0, due - performance.now()));
    worstLagMs = Math.max(worstLagMs, performance.now() - due);
    socket.send(frame);
    sent += 1;
  }
  const closed = new Promise((done) => socket.on('close', done));
  socket.close();
  await closed;
}

async function main() {
  await new Promise((done) => store.listen(Number(storePort), '127.0.0.1', done));
  const end = performance.now() + (Number(ramp) + 1 + Number(secs)) * 1000 + 500;
  const running = [];
  for (let begun = 0; begun < Number(calls); begun += 1) {
    running.push(call(end));
    await sleep((Number(ramp) * 1000) / Number(calls));
  }
  await sleep(1000);
  const [cpu, clock, frames] = [cpuMs(), performance.now(), sent];
  await sleep(Number(secs) * 1000);
  const [usedMs, wallSecs, took] = [cpuMs() - cpu, (performance.now() - clock) / 1000, sent - frames];
  const memory = /VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))[1];
  await Promise.all(running);
  for (let tries = 0; tries < 100 && finished < Number(calls); tries += 1) await sleep(50);
  const sentBytes = sent * FRAME_BYTES;
  console.log(JSON.stringify({
    cpu_ms_per_call_second: usedMs / (took * FRAME_MS / 1000),
    calls_by_frames: took * FRAME_MS / 1000 / wallSecs,
    resident_mib: Math.round(memory / 1024),
    worst_send_lag_ms: Math.round(worstLagMs),
    recordings_finished: finished,
    // A WAV file begins with 44 bytes that are not audio.
    audio_stored_percent: 100 * (stored - 44 * finished) / sentBytes,
  }));
  process.exit(0);
}

main();
