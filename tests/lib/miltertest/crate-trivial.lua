-- The session of OpenDKIM's miltertest against milter/examples/trivial.rs:
--   trivial unix:/tmp/x.sock &  miltertest -D socket=unix:/tmp/x.sock -s crate-trivial.lua
-- miltertest can't take replies of more than 1,024 bytes at end of message, and knows no QUIT_NC and no SKIP.

local function message(conn, number, body, expected)
  mt.macro(conn, SMFIC_MAIL, "i", "QID" .. number)
  if mt.mailfrom(conn, "<sender@example.org>", "SIZE=100") ~= nil then error("mail") end
  if mt.rcptto(conn, "<rcpt@example.net>") ~= nil then error("rcpt") end
  if mt.header(conn, "From", "sender@example.org") ~= nil then error("header") end
  if mt.header(conn, "Subject", "folded\n\tonce") ~= nil then error("header 2") end
  if mt.eoh(conn) ~= nil then error("eoh") end
  if mt.getreply(conn) ~= SMFIR_CONTINUE then error("reply to eoh: " .. mt.getreply(conn)) end
  for _, piece in ipairs(body) do
    if mt.bodystring(conn, piece) ~= nil then error("body") end
  end
  if mt.eom(conn) ~= nil then error("eom") end
  if mt.getreply(conn) ~= SMFIR_ACCEPT then error("reply to eom") end
  if not mt.eom_check(conn, MT_HDRADD, "X-Trivial-Milter", "yes")
     and not mt.eom_check(conn, MT_HDRADD, "X-Trivial-Milter", " yes") then error("added header") end
  if expected then
    if not mt.eom_check(conn, MT_BODYCHANGE, expected) then error("body change") end
  elseif mt.eom_check(conn, MT_BODYCHANGE) then
    error("body changed for nothing")
  end
  if mt.eom_check(conn, MT_HDRINSERT) or mt.eom_check(conn, MT_HDRCHANGE) then error("other edits") end
end

local function run()
  local conn = mt.connect(socket, 40, 0.1)
  if conn == nil then error("connect") end
  if mt.negotiate(conn, nil, nil, nil) ~= nil then error("negotiate") end
  if not mt.test_action(conn, SMFIF_CHGBODY) then error("CHGBODY not asked for") end
  if mt.test_action(conn, SMFIF_QUARANTINE) then error("QUARANTINE asked for without need") end
  -- The filter asked to be left out of CONNECT, HELO and DATA: miltertest refuses to send them.
  if pcall(mt.conninfo, conn, "client.example.org", "192.0.2.1") then error("CONNECT asked for without need") end
  if pcall(mt.data, conn) then error("DATA asked for without need") end

  -- Several messages on one connection, a URL across two chunks, nothing kept from one to the next.
  message(conn, 1, { "see http://example.com/a\r\n", "end\r\n" }, "see http://t.example.net/c/a\r\nend\r\n")
  mt.abort(conn)
  message(conn, 2, { "see http://exam", "ple.com/b\r\n" }, "see http://t.example.net/c/b\r\n")
  mt.abort(conn)
  message(conn, 3, { "nothing here\r\n" }, nil)
  mt.abort(conn)
  message(conn, 4, {}, nil)
  mt.abort(conn)

  -- A message given up in its envelope, and one in its body.
  mt.mailfrom(conn, "<sender@example.org>")
  mt.abort(conn)
  mt.mailfrom(conn, "<sender@example.org>")
  mt.rcptto(conn, "<rcpt@example.net>")
  mt.header(conn, "From", "left over")
  mt.eoh(conn)
  mt.bodystring(conn, "left over http://example.com/\r\n")
  mt.abort(conn)
  message(conn, 5, { "http://example.com/5\r\n" }, "http://t.example.net/c/5\r\n")
  mt.abort(conn)

  -- A bounce is accepted at the end of its headers.
  mt.mailfrom(conn, "<>")
  mt.rcptto(conn, "<rcpt@example.net>")
  mt.header(conn, "From", "MAILER-DAEMON")
  mt.eoh(conn)
  if mt.getreply(conn) ~= SMFIR_ACCEPT then error("bounce") end
  mt.abort(conn)
  mt.disconnect(conn)
end

local ok, problem = pcall(run)
if not ok then
  mt.echo("FAIL: " .. tostring(problem))
  error(problem)
end
mt.echo("ok")
