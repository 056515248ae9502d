-- For wrk: posts the lines of the file that is its first argument in turn, and reports as JSON.

function init(args)
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
   local posts = {}
   for line in assert(io.lines(args[1])) do
      posts[#posts + 1] = wrk.format(nil, nil, nil, line)
      wrk.body = line
   end
   if #posts > 1 then -- else wrk sends wrk.body, without a call into this script for each request
      local turn = 0
      function request()
         turn = turn % #posts + 1
         return posts[turn]
      end
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests_per_s": %.1f, "latency_p50_ms": %.3f, "latency_p99_ms": %.3f, "errors": %d}\n',
      (summary.requests - errors.status) / summary.duration * 1e6,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout
   ))
end
