-- Every answer a filter has, by OpenDKIM's miltertest against milter/examples/edits.rs:
--   edits unix:/tmp/x.sock &  miltertest -D socket=unix:/tmp/x.sock -s crate-edits.lua
-- miltertest has no check for a changed sender, nor for a recipient with arguments: that these don't disturb it is all it
-- can tell. What Postfix makes of them is in tests/milter_edits.rs.

local conn

local function send(case)
  mt.macro(conn, SMFIC_MAIL, "i", "QID")
  if mt.mailfrom(conn, "<sender@example.org>", "SIZE=100") ~= nil then error(case .. ": mail") end
  if mt.rcptto(conn, "<rcpt@example.net>", "NOTIFY=FAILURE") ~= nil then error(case .. ": rcpt") end
  if mt.header(conn, "From", "sender@example.org") ~= nil then error(case .. ": header") end
  mt.header(conn, "Subject", "old")
  mt.header(conn, "X-Gone", "soon")
  mt.header(conn, "X-Case", case)
  if mt.eoh(conn) ~= nil then error(case .. ": eoh") end
  if mt.getreply(conn) ~= SMFIR_CONTINUE then return mt.getreply(conn) end
  if mt.bodystring(conn, "body\r\n") ~= nil then error(case .. ": body") end
  if mt.eom(conn) ~= nil then error(case .. ": eom") end
  return mt.getreply(conn)
end

local function case(name, reply, check)
  local got = send(name)
  if got ~= reply then error(name .. ": reply " .. tostring(got)) end
  if check then check() end
  mt.abort(conn)
end

local function wanted(condition, what)
  if not condition then error(what, 2) end
end

local function run()
  conn = mt.connect(socket, 40, 0.1)
  if conn == nil then error("connect") end
  if mt.negotiate(conn, nil, nil, nil) ~= nil then error("negotiate") end
  for _, action in ipairs({ SMFIF_QUARANTINE, SMFIF_CHGFROM, SMFIF_ADDRCPT, SMFIF_ADDRCPT_PAR, SMFIF_DELRCPT }) do
    wanted(mt.test_action(conn, action), "an action that was not asked for")
  end
  mt.set_timeout(2)

  case("nothing", SMFIR_ACCEPT, function()
    for _, op in ipairs({ MT_HDRADD, MT_HDRINSERT, MT_HDRCHANGE, MT_HDRDELETE, MT_BODYCHANGE, MT_QUARANTINE }) do
      wanted(not mt.eom_check(conn, op), "an edit for nothing")
    end
  end)
  case("quarantine", SMFIR_ACCEPT, function()
    wanted(mt.eom_check(conn, MT_QUARANTINE, "to be looked at"), "quarantine with its reason")
  end)
  case("sender", SMFIR_ACCEPT)
  case("recipients", SMFIR_ACCEPT, function()
    wanted(mt.eom_check(conn, MT_RCPTDELETE, "<rcpt@example.net>"), "a recipient deleted")
    wanted(mt.eom_check(conn, MT_RCPTADD, "<plain@example.net>"), "a recipient added")
  end)
  case("headers", SMFIR_ACCEPT, function()
    wanted(mt.eom_check(conn, MT_HDRCHANGE, "Subject", "changed")
      or mt.eom_check(conn, MT_HDRCHANGE, "Subject", " changed"), "a header changed")
    wanted(mt.eom_check(conn, MT_HDRDELETE, "X-Gone"), "a header deleted")
    wanted(mt.eom_check(conn, MT_HDRINSERT, "X-First"), "a header inserted")
  end)
  case("reject", SMFIR_REJECT)
  case("tempfail", SMFIR_TEMPFAIL)
  case("discard", SMFIR_DISCARD)
  case("reply", SMFIR_REPLYCODE, function()
    wanted(mt.eom_check(conn, MT_SMTPREPLY, "554", "5.7.9", "not like this"), "a reply of the filter's own")
  end)
  -- Whatever fails, the message goes on; three seconds are longer than miltertest waits without a sign of life.
  case("panic", SMFIR_ACCEPT)
  case("panic at headers", SMFIR_ACCEPT)
  case("accept at headers", SMFIR_ACCEPT)
  case("slow", SMFIR_ACCEPT, function()
    wanted(mt.eom_check(conn, MT_HDRADD, "X-Slow"), "the header of a slow answer")
  end)
  case("nothing", SMFIR_ACCEPT)
  mt.disconnect(conn)
end

local ok, problem = pcall(run)
if not ok then
  mt.echo("FAIL: " .. tostring(problem))
  error(problem)
end
mt.echo("ok")
