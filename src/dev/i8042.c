/*
 * 8042 keyboard controller of the PC/AT (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
 * Controller", October 1990), with a keyboard and a mouse (dev/ps2_keyboard.c, dev/ps2_mouse.c) or with neither: then bytes for them end in a
 * timeout, and the auxiliary port shows itself to be none. The A20 gate gates nothing.
 */
#include "dev/i8042.h"

#include <string.h>

#include "base/base.h"

/* Status register */
enum { STATUS_OBF = 1 << 0, STATUS_SYSTEM = 1 << 2, STATUS_A2 = 1 << 3, STATUS_NOT_INHIBITED = 1 << 4, STATUS_AUX = 1 << 5,
       STATUS_TIMEOUT = 1 << 6 };
/* Controller command byte */
enum { BYTE_IRQ_KEYBOARD = 1 << 0, BYTE_IRQ_AUX = 1 << 1, BYTE_SYSTEM = 1 << 2, BYTE_DISABLE_KEYBOARD = 1 << 4, BYTE_DISABLE_AUX = 1 << 5,
       BYTE_TRANSLATE = 1 << 6 };
/* Output port */
enum { OUTPUT_NOT_RESET = 1 << 0, OUTPUT_A20 = 1 << 1 };

enum i8042_command {
    COMMAND_READ_RAM = 0x20,            /* to 0x3F */
    COMMAND_WRITE_RAM = 0x60,           /* to 0x7F */
    COMMAND_DISABLE_AUX = 0xA7,
    COMMAND_ENABLE_AUX = 0xA8,
    COMMAND_TEST_AUX = 0xA9,
    COMMAND_SELF_TEST = 0xAA,
    COMMAND_TEST_KEYBOARD = 0xAB,
    COMMAND_DISABLE_KEYBOARD = 0xAD,
    COMMAND_ENABLE_KEYBOARD = 0xAE,
    COMMAND_READ_INPUT = 0xC0,
    COMMAND_READ_OUTPUT = 0xD0,
    COMMAND_WRITE_OUTPUT = 0xD1,
    COMMAND_WRITE_KEYBOARD_BUFFER = 0xD2,
    COMMAND_WRITE_AUX_BUFFER = 0xD3,
    COMMAND_WRITE_AUX = 0xD4,
    COMMAND_PULSE = 0xF0,               /* to 0xFF: bits that are 0 pulse low; bit 0 is the processor's reset */
};

enum { SELF_TEST_PASSED = 0x55, INTERFACE_OK = 0, INTERFACE_CLOCK_STUCK_HIGH = 2, KEYBOARD_RESEND = 0xFE, INPUT_PORT = 0x80 };

static const uint64_t data_port = 0x60, control_port = 0x64;

/* --- helpers --- */

static void update_irq(struct i8042 *i8042)
{
    irq_set(&i8042->irq, i8042->output_full && !i8042->output_aux && i8042->ram[0] & BYTE_IRQ_KEYBOARD);
    irq_set(&i8042->irq_aux, i8042->output_full && i8042->output_aux && i8042->ram[0] & BYTE_IRQ_AUX);
}

static void respond(struct i8042 *i8042, uint8_t value, bool timeout)
{
    i8042->output = value;
    i8042->output_full = true;
    i8042->output_timeout = timeout;
    i8042->output_aux = false;
}

static void respond_aux(struct i8042 *i8042, uint8_t value, bool timeout)
{
    respond(i8042, value, timeout);
    i8042->output_aux = true;
}

/* With translation on, codes of set 2 become those of set 1: a break prefix becomes bit 7 of the code that follows. */
static bool translated(struct i8042 *i8042, uint8_t *value)
{
    enum { BREAK_PREFIX = 0xF0, EXTENDED = 0xE0, CODES_END = 0x84, BREAK = 0x80 };
    if (!(i8042->ram[0] & BYTE_TRANSLATE))
        return true;
    if (*value == BREAK_PREFIX) {
        i8042->translate_break = true;
        return false;
    }
    if (*value < CODES_END)
        *value = key_translate(*value) | (i8042->translate_break ? BREAK : 0);
    i8042->translate_break = i8042->translate_break && *value == EXTENDED;
    return true;
}

/* The next byte of the keyboard or the mouse, if there is room for it and its clock line is not held. */
static void take_input(struct i8042 *i8042)
{
    uint8_t value;
    while (i8042->plugged && !i8042->output_full && !(i8042->ram[0] & BYTE_DISABLE_KEYBOARD) &&
           ps2_keyboard_read(&i8042->keyboard, &value))
        if (translated(i8042, &value))
            respond(i8042, value, false);
    if (i8042->plugged && !i8042->output_full && !(i8042->ram[0] & BYTE_DISABLE_AUX) && ps2_mouse_read(&i8042->mouse, &value))
        respond_aux(i8042, value, false);
}

static void to_keyboard(struct i8042 *i8042, uint8_t value)
{
    i8042->ram[0] &= ~BYTE_DISABLE_KEYBOARD;
    if (i8042->plugged)
        ps2_keyboard_write(&i8042->keyboard, value);
    else
        respond(i8042, KEYBOARD_RESEND, true);
}

bool i8042_key(struct i8042 *i8042, enum key key, bool down)
{
    bool taken = !i8042->plugged || ps2_keyboard_key(&i8042->keyboard, key, down);
    take_input(i8042);
    update_irq(i8042);
    return taken;
}

void i8042_move(struct i8042 *i8042, int dx, int dy, int dz, uint8_t buttons)
{
    if (i8042->plugged)
        ps2_mouse_move(&i8042->mouse, dx, dy, dz, buttons);
    take_input(i8042);
    update_irq(i8042);
}

static void to_mouse(struct i8042 *i8042, uint8_t value)
{
    i8042->ram[0] &= ~BYTE_DISABLE_AUX;
    if (i8042->plugged)
        ps2_mouse_write(&i8042->mouse, value);
    else
        respond(i8042, KEYBOARD_RESEND, true);  /* nobody answers */
}

static void write_output_port(struct i8042 *i8042, uint8_t value)
{
    i8042->output_port = value;
    if (!(value & OUTPUT_NOT_RESET))
        system_signal_send(&i8042->signal, SYSTEM_REQUEST_RESET, 0);
}

/* --- commands --- */

static void command(struct i8042 *i8042, uint8_t value)
{
    i8042->argument_of = 0;
    switch (value) {
    case COMMAND_READ_RAM ... COMMAND_READ_RAM + 31: respond(i8042, i8042->ram[value & 31], false); break;
    case COMMAND_WRITE_RAM ... COMMAND_WRITE_RAM + 31:
    case COMMAND_WRITE_OUTPUT: case COMMAND_WRITE_KEYBOARD_BUFFER: case COMMAND_WRITE_AUX_BUFFER: case COMMAND_WRITE_AUX:
        i8042->argument_of = value;
        break;
    case COMMAND_DISABLE_AUX: i8042->ram[0] |= BYTE_DISABLE_AUX; break;
    case COMMAND_ENABLE_AUX: i8042->ram[0] &= ~BYTE_DISABLE_AUX; break;
    case COMMAND_TEST_AUX: respond(i8042, i8042->plugged ? INTERFACE_OK : INTERFACE_CLOCK_STUCK_HIGH, false); break;
    case COMMAND_SELF_TEST:
        i8042->ram[0] |= BYTE_SYSTEM;
        respond(i8042, SELF_TEST_PASSED, false);
        break;
    case COMMAND_TEST_KEYBOARD: respond(i8042, INTERFACE_OK, false); break;
    case COMMAND_DISABLE_KEYBOARD: i8042->ram[0] |= BYTE_DISABLE_KEYBOARD; break;
    case COMMAND_ENABLE_KEYBOARD: i8042->ram[0] &= ~BYTE_DISABLE_KEYBOARD; break;
    case COMMAND_READ_INPUT: respond(i8042, INPUT_PORT, false); break;
    case COMMAND_READ_OUTPUT: respond(i8042, i8042->output_port, false); break;
    case COMMAND_PULSE ... COMMAND_PULSE + 15:
        if (!(value & 1))
            system_signal_send(&i8042->signal, SYSTEM_REQUEST_RESET, 0);
        break;
    default: guest_error(i8042->device.world.log, "8042: command 0x%02x", value); break;
    }
}

static void data(struct i8042 *i8042, uint8_t value)
{
    uint8_t of = i8042->argument_of;
    i8042->argument_of = 0;
    if (of >= COMMAND_WRITE_RAM && of < COMMAND_WRITE_RAM + 32)
        i8042->ram[of & 31] = value;
    else if (of == COMMAND_WRITE_OUTPUT)
        write_output_port(i8042, value);
    else if (of == COMMAND_WRITE_AUX_BUFFER && i8042->plugged)
        respond_aux(i8042, value, false);
    else if (of == COMMAND_WRITE_KEYBOARD_BUFFER || of == COMMAND_WRITE_AUX_BUFFER)
        respond(i8042, value, false);   /* not marked as auxiliary data: by that, drivers see that there is no such port */
    else if (of == COMMAND_WRITE_AUX)
        to_mouse(i8042, value);
    else
        to_keyboard(i8042, value);
}

/* --- access --- */

static enum access_result data_access(void *owner, struct access *access)
{
    struct i8042 *i8042 = owner;
    if (access->write) {
        i8042->last_was_command = false;
        data(i8042, (uint8_t)access->value);
    } else {
        access->value = i8042->output;
        i8042->output_full = i8042->output_timeout = false;
        update_irq(i8042);      /* an edge for each byte */
    }
    take_input(i8042);
    update_irq(i8042);
    return ACCESS_OK;
}

static enum access_result control_access(void *owner, struct access *access)
{
    struct i8042 *i8042 = owner;
    if (access->write) {
        i8042->last_was_command = true;
        command(i8042, (uint8_t)access->value);
        take_input(i8042);
        update_irq(i8042);
        return ACCESS_OK;
    }
    access->value = STATUS_NOT_INHIBITED | (i8042->output_full ? STATUS_OBF : 0) | (i8042->ram[0] & BYTE_SYSTEM ? STATUS_SYSTEM : 0) |
                    (i8042->last_was_command ? STATUS_A2 : 0) | (i8042->output_aux && i8042->output_full ? STATUS_AUX : 0) |
                    (i8042->output_timeout ? STATUS_TIMEOUT : 0);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void i8042_reset(struct device *device)
{
    struct i8042 *i8042 = (struct i8042 *)device;
    memset(i8042->ram, 0, sizeof(i8042->ram));
    i8042->ram[0] = BYTE_SYSTEM | BYTE_DISABLE_AUX;
    i8042->output_port = OUTPUT_NOT_RESET | OUTPUT_A20;
    i8042->output = i8042->argument_of = 0;
    i8042->output_full = i8042->output_timeout = i8042->output_aux = i8042->last_was_command = false;
    i8042->translate_break = false;
    ps2_keyboard_reset(&i8042->keyboard);
    ps2_mouse_reset(&i8042->mouse);
    update_irq(i8042);
}

static bool i8042_init(struct device *device, struct error *err)
{
    struct i8042 *i8042 = (struct i8042 *)device;
    i8042->data = (struct region){ .name = "i8042-data", .base = data_port, .size = 1, .access_max = 1,
                                   .access = data_access, .owner = i8042, .lock = device->world.lock };
    i8042->control = (struct region){ .name = "i8042-control", .base = control_port, .size = 1, .access_max = 1,
                                      .access = control_access, .owner = i8042, .lock = device->world.lock };
    bus_map(device->world.ports, &i8042->data);
    bus_map(device->world.ports, &i8042->control);
    return true;
}

static void i8042_resume(struct device *device)
{
    struct i8042 *i8042 = (struct i8042 *)device;
    ps2_keyboard_resume(&i8042->keyboard);
    ps2_mouse_resume(&i8042->mouse);
    take_input(i8042);
    update_irq(i8042);
}

static void i8042_fini(struct device *device)
{
    struct i8042 *i8042 = (struct i8042 *)device;
    bus_unmap(device->world.ports, &i8042->data);
    bus_unmap(device->world.ports, &i8042->control);
}

/* --- state list, type --- */

static const struct state_field i8042_fields[] = {
    STATE_ARRAY(struct i8042, ram),           STATE_SCALAR(struct i8042, output_port),
    STATE_SCALAR(struct i8042, output),       STATE_SCALAR(struct i8042, output_full),
    STATE_SCALAR(struct i8042, output_timeout), STATE_SCALAR(struct i8042, argument_of),
    STATE_SCALAR(struct i8042, last_was_command), STATE_SCALAR_SINCE(struct i8042, translate_break, 2),
    { "keyboard", STATE_STRUCT, offsetof(struct i8042, keyboard), sizeof(struct ps2_keyboard), 1, 2, &ps2_keyboard_state },
    STATE_SCALAR_SINCE(struct i8042, output_aux, 3), STATE_NESTED_SINCE(struct i8042, mouse, ps2_mouse_state, 3),
};
static const struct state_list i8042_state = STATE_LIST("i8042", 3, i8042_fields);

const struct device_type device_i8042 = {
    .name = "i8042",
    .text = "keyboard controller",
    .size = sizeof(struct i8042),
    .state = &i8042_state,
    .init = i8042_init,
    .reset = i8042_reset,
    .resume = i8042_resume,
    .fini = i8042_fini,
};
