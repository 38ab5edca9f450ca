// Runs the recorder of jambonz-api-server (its lib/record, unchanged) without its database: what callseal is compared
// with in README.md. The one account writes WAV to an S3 store on this machine. Needs MODULES, a folder with lib/record
// and node_modules.
//
//   MODULES=FOLDER node jambonz_recorder.js PORT CERTIFICATE KEY STORE-URL
'use strict';
const fs = require('fs');
const https = require('https');
const path = require('path');
const Module = require('module');

const [port, certificate, key, store] = process.argv.slice(2);
const modules = path.resolve(process.env.MODULES);
const load = Module.createRequire(path.join(modules, 'package.json'));
const account = {
  record_format: 'wav',
  bucket_credential: {
    vendor: 's3_compatible', name: 'peers', endpoint: store, access_key_id: 'peer', secret_access_key: 'peer',
    region: 'us-east-1',
  },
};

// Stands for the database, and answers at once.
const plainLoad = Module._load;
Module._load = function (name, ...rest) {
  if (name === '../models/account') return { retrieve: async () => [account] };
  return plainLoad.call(this, name, ...rest);
};

const record = load('./lib/record');
const { Server } = load('ws');
const quiet = { info() {}, debug() {}, error: console.error };
const server = https.createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) });
const sockets = new Server({ noServer: true });
sockets.on('connection', (socket) => record(quiet, socket));
server.on('upgrade', (request, socket, head) => {
  sockets.handleUpgrade(request, socket, head, (accepted) => sockets.emit('connection', accepted));
});
server.listen(Number(port), '127.0.0.1');
