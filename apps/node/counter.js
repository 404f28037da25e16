// An HTTP server with named counters in a Map: GET /NAME reads, POST /NAME adds one.
//
// Usage: counter.js HOST PORT
"use strict";

const http = require("node:http");

const counters = new Map();

const server = http.createServer((request, response) => {
  let count = counters.get(request.url) ?? 0;
  if (request.method === "POST") {
    count += 1;
    counters.set(request.url, count);
  }
  const body = `${count}\n`;
  response.writeHead(200, { "Content-Length": body.length });
  response.end(body);
});

server.keepAliveTimeout = 0;
server.listen(Number(process.argv[3]), process.argv[2]);
